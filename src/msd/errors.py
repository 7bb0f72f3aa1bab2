"""The one exception tree. A message says what is wrong, where, why, and what to do.

Every class carries the exit code that the ``msd`` command ends with (documented in ``docs/errors.md``).
"""

from __future__ import annotations


class MsdError(Exception):
    """Base of all errors a user can cause or mend.

    Args:
        what: what is wrong, one sentence.
        where: the file, key or object concerned.
        why: the cause, when it is known.
        todo: what the reader should do about it.
    """

    exit_code = 1
    repeats = False  # whether the same call would end in the same way again

    def __init__(self, what: str, *, where: str = "", why: str = "", todo: str = "") -> None:
        self.what, self.where, self.why, self.todo = what, where, why, todo
        rows = [what]
        rows += [f"  {name}: {text}" for name, text in (("where", where), ("why", why), ("do", todo)) if text]
        super().__init__("\n".join(rows))


class ConfigError(MsdError):
    """The configuration cannot be used: unknown keys, wrong types, impossible values."""

    exit_code = 2
    repeats = True


class MissingFileError(MsdError):
    """A file that the configuration names does not exist."""

    exit_code = 3


class DamagedFileError(MsdError):
    """A file is not what its sha256, size or format says it should be."""

    exit_code = 4


class PartitionError(MsdError):
    """A partition does not cover the conditions exactly once, or cannot be built."""

    exit_code = 5
    repeats = True


class DataError(MsdError):
    """Images or labels are not of the shape, mode or range that is promised."""

    exit_code = 6
    repeats = True


class DownloadError(MsdError):
    """A download failed or could not be verified."""

    exit_code = 7


class DivergedError(MsdError):
    """Training produced non-finite numbers; the last good checkpoint is kept."""

    exit_code = 8
    repeats = True


class TrackingError(MsdError):
    """The experiment tracker cannot be reached or refuses what it is told; results are not touched."""

    exit_code = 9


class UnsafeFileError(MsdError):
    """A file would have to be executed to be read; it was not."""

    exit_code = 10
    repeats = True


class LeaseLostError(MsdError):
    """Another process has taken over the run directory; this one wrote nothing after that."""

    exit_code = 11


class StorageError(MsdError):
    """A checkpoint, the journal or pictures could not be written, for want of room say; what was whole is kept."""

    exit_code = 12


class OutOfMemoryError(MsdError):
    """The device's memory does not suffice, also with half the micro-batch."""

    exit_code = 13


class SelfTestError(MsdError):
    """A metric does not give a known answer, or did not notice that it was broken on purpose."""

    exit_code = 14
    repeats = True


class InterruptedRun(MsdError):
    """A signal asked the run to stop; it was saved and the same command goes on (EX_TEMPFAIL)."""

    exit_code = 75
