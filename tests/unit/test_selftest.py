"""The metric's self-test notices every mistake, and ends with an error where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ROOT

from msd.cli.main import main
from msd.data.archive import open_half
from msd.errors import SelfTestError
from msd.evaluate import selftest
from msd.evaluate.features import open_extractor
from msd.evaluate.frechet import frechet_distance
from msd.evaluate.metrics import statistics_of
from msd.evaluate.selftest import MISTAKES, Outcome, Sample, require, sample_of, self_test
from msd.evaluate.statistics import Moments, Statistics
from msd.store import Manifest

FEATURES = ROOT / "resources" / "metrics" / "digits-features.safetensors"


@pytest.fixture(scope="module")
def samples(digits: Manifest) -> tuple[Sample, Sample]:
    extractor = open_extractor(FEATURES, {"source": "file"}, "tensorflow", torch.device("cpu"))
    halves = (open_half(digits, half) for half in ("evaluation", "train"))
    one, other = (sample_of(np.array(h.images[:600]), h.labels[:600], extractor) for h in halves)
    return one, other


def test_every_mistake_is_noticed(samples: tuple[Sample, Sample]) -> None:
    outcomes = self_test(*samples)
    assert [o.name for o in outcomes if o.mistake] == list(MISTAKES)
    assert len(MISTAKES) >= 4
    assert all(outcome.passed for outcome in outcomes), "\n".join(map(str, outcomes))
    require(outcomes)


def test_a_mistake_without_effect_is_an_error(samples: tuple[Sample, Sample]) -> None:
    outcomes = self_test(*samples, {"nothing": lambda sample: frechet_distance(*[statistics_of(sample.features)] * 2)})
    with pytest.raises(SelfTestError, match=r"nothing(.|\n)*NOT CAUGHT"):
        require(outcomes)


def test_a_broken_distance_misses_a_known_answer(
    samples: tuple[Sample, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_means(one: Statistics, other: Statistics) -> float:
        return frechet_distance(Statistics(one.mu * 0, one.sigma), Statistics(one.mu * 0, other.sigma))

    monkeypatch.setattr(selftest, "frechet_distance", without_means)
    with pytest.raises(SelfTestError, match=r"torch-fidelity(.|\n)*WRONG"):
        require(selftest.known_answers(*samples))


def test_broken_moments_miss_a_known_answer(samples: tuple[Sample, Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's own accumulators, as they would be if they started at one."""
    start = Moments.__init__

    def from_ones(self: Moments, width: int) -> None:
        start(self, width)
        self._scatter += 1

    monkeypatch.setattr(Moments, "__init__", from_ones)
    with pytest.raises(SelfTestError, match=r"torch-fidelity(.|\n)*WRONG"):
        require(selftest.known_answers(*samples))


def test_repeating_all_images_alike_is_no_skew(samples: tuple[Sample, Sample]) -> None:
    features = samples[0].features
    even = statistics_of(np.repeat(features, 3, axis=0))
    assert frechet_distance(even, statistics_of(features)) < selftest.NOTHING


def test_lines_say_what_happened() -> None:
    assert str(Outcome("x", 2.0, 1.0, True)).endswith("caught")
    assert str(Outcome("x", 0.5, 1.0, True)).endswith("NOT CAUGHT")
    assert str(Outcome("x", 0.5, 1.0, False)).endswith("ok")
    assert str(Outcome("x", 2.0, 1.0, False)).endswith("WRONG")


def test_command(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path_factory.mktemp("place")
    for name in ("params.yaml", "protocols", "experiments", "resources"):
        (place / name).symlink_to(ROOT / name)
    monkeypatch.chdir(place)
    assert main(["evaluate", "--self-test", "300"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("caught") == len(MISTAKES)
    monkeypatch.setitem(selftest.MISTAKES, "nothing at all", lambda sample: 0.0)  # type: ignore[arg-type]
    assert main(["evaluate", "--self-test", "300"]) == SelfTestError.exit_code
    assert "NOT CAUGHT" in capsys.readouterr().out
