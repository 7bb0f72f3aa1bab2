"""What can be split among students at all."""

from __future__ import annotations

from msd.errors import ConfigError


def check_split(num_conditions: int, students: int, where: str) -> None:
    """Refuse to split the conditions of an unconditional teacher.

    Args:
        num_conditions: of the teacher; 0: unconditional.
        students: K.
        where: for the message.

    Raises:
        ConfigError: several students, and no conditions.
    """
    if students > 1 and num_conditions == 0:
        raise ConfigError(
            f"The teacher is unconditional: there is nothing to split among {students} students.",
            where=where,
            todo="Give the variants one student each, or choose a conditional teacher.",
        )
