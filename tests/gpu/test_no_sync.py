"""On a GPU: an update never waits for the device, and a short training in bfloat16 learns. Skipped without CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import tiny

from msd.config import Compute
from msd.distill.dm import DmStep
from msd.draws import Draws
from msd.networks.levers import prepare
from msd.training import journal
from msd.training.engine import Schedule, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
RUNS = [
    pytest.param(tiny.dm_step, {"regression": True, "teacher_guidance": 1.5}, id="dm"),
    pytest.param(tiny.adm_step, {"divergence": "jensen_shannon", "r1_weight": 1.0}, id="adm"),
    pytest.param(tiny.adm_step, {"discriminator_features": "teacher"}, id="adm on the teacher"),
]


def on_gpu(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, precision: str, compute: Compute, **changes: Any
) -> Any:
    """A tiny step, its networks prepared on the GPU before it is made, as a stage does."""
    device, network, discriminator = torch.device("cuda"), tiny.network, tiny.Discriminator
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "network", lambda *a, **k: prepare(network(*a, **k), device, precision, compute))
        patch.setattr(tiny, "Discriminator", lambda *a: discriminator(*a).to(device))
        patch.setattr(tiny, "Draws", lambda seed, *a: Draws(seed, device))
        return make(**changes)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "compute", [Compute(), Compute(channels_last=True, gradient_checkpointing=True, micro_batch=3)]
)
@pytest.mark.parametrize(("make", "changes"), RUNS)
def test_an_update_never_waits_for_the_device(
    make: Callable[..., DmStep],
    changes: dict[str, Any],
    compute: Compute,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine reads the device at log points only; between them the CPU runs ahead."""
    step = on_gpu(make, monkeypatch, precision, compute, **changes)
    step.draws.micro_batch = compute.micro_batch
    step(0)  # libraries may wait while they set themselves up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = step(tiny.BATCH)
        with pytest.raises(RuntimeError, match="synchroniz"):
            values["dm_loss"].item()  # and the mode does catch what waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(v.isfinite() and v.is_cuda for v in values.values())


@pytest.mark.parametrize("make", [tiny.tsm_step, tiny.adm_step], ids=["tsm", "adm"])
def test_short_training_in_bfloat16(make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is kept is float32 and finite, a new process goes on from it, and TSM's loss falls."""
    compute, updates = Compute(channels_last=True), 60
    train(on_gpu(make, monkeypatch, "bfloat16", compute), tmp_path, Schedule(updates // 2 * tiny.BATCH, 1, 30))
    step = on_gpu(make, monkeypatch, "bfloat16", compute)
    assert train(step, tmp_path, Schedule(updates * tiny.BATCH, 1, 30)).nimg == updates * tiny.BATCH
    kept = tiny.tensors(step.state_dict()).values()
    assert {t.dtype for t in kept} == {torch.float32}
    assert all(t.isfinite().all() for t in kept)
    assert all(int(updater.skipped) == 0 for updater in step.updaters.values())
    metrics = list(journal.metrics(tmp_path / "events.jsonl").values())
    assert len(metrics) == updates
    if make is tiny.tsm_step:
        assert sum(m["loss"] for m in metrics[-10:]) < 0.8 * sum(m["loss"] for m in metrics[:10])


def test_gpu_and_cpu_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, made on the CPU for both; losses of one update in float32, without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = tiny.adm_step()(0)
    found = on_gpu(tiny.adm_step, monkeypatch, "float32", Compute())(0)
    assert {name: float(v) for name, v in found.items()} == pytest.approx(
        {name: float(v) for name, v in expected.items()}, rel=1e-2, abs=1e-3
    )
