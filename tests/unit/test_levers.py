"""How a network computes changes neither what it computes nor what is kept: precision, layout, memory, compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import ADAM, BATCH, IMAGE_SHAPE, adm_step, data, network, tensors
from torch import Tensor, nn

from msd.config import Compute, Tsm
from msd.distill.tsm import TsmStep
from msd.draws import Draws
from msd.networks import Preconditioned, load_network, save_network
from msd.networks.levers import prepare
from msd.training import checkpoint
from msd.training.engine import Schedule, train

CPU = torch.device("cpu")
SONG: dict[str, Any] = {"architecture": "song", "attn_resolutions": [2]}
CHANNELS_LAST = Compute(channels_last=True)
X, COND = Draws(0).normal("x", 0, (4, *IMAGE_SHAPE)), torch.arange(4)
SIGMA = torch.tensor([0.05, 0.5, 5.0, 80.0])
both = pytest.mark.parametrize("changes", [{}, SONG], ids=["adm", "song"])
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler needs g++")


def prepared(compute: Compute, precision: str = "float32", **changes: Any) -> Preconditioned:
    return prepare(network(1, **changes), CPU, precision, compute)


def outputs(net: Preconditioned, gradients: bool = True) -> list[Tensor]:
    """What it denoises, its bottleneck and what it generates; then the gradients of all three."""
    net.requires_grad_(gradients).zero_grad()
    noised = X * SIGMA.reshape(-1, 1, 1, 1)
    found = [net.denoise(noised, SIGMA, COND), net.features(noised, SIGMA, COND), net.generate(X, COND)]
    if gradients:
        torch.stack([t.float().square().mean() for t in found]).sum().backward()
        found += [p.grad for p in net.parameters()]
    return [t.detach() for t in found]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest norm of a difference, as a share of the norm of what is expected."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def watch_convolutions(net: nn.Module, look: Callable[[Tensor, Tensor], Any]) -> dict[str, Any]:
    """Name of every convolution → what ``look`` says of its input and output, once it has run."""
    seen: dict[str, Any] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: look(x[0], y)}))
    return seen


def prepared_step(monkeypatch: pytest.MonkeyPatch, compute: Compute, precision: str, **changes: Any) -> Any:
    """A step whose networks are prepared before it is made, as a stage does."""
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "network", lambda *a, **k: prepare(network(*a, **k), CPU, precision, compute))
        return adm_step(divergence="jensen_shannon", **changes)


@both
def test_bfloat16_computes_in_bfloat16_and_stays_near_float32(changes: dict[str, Any]) -> None:
    net, plain = prepared(Compute(), "bfloat16", **changes), network(1, **changes)
    seen = watch_convolutions(net, lambda x, y: y.dtype)
    with torch.no_grad():
        found, expected = outputs(net, gradients=False), outputs(plain, gradients=False)
    assert len(seen) > 10
    assert set(seen.values()) == {torch.bfloat16}
    assert found[0].dtype == found[2].dtype == torch.float32
    assert 1e-4 < distance(found, expected) < 0.04  # found: 0.016
    again = watch_convolutions(prepare(net, CPU, "float32", Compute()), lambda x, y: y.dtype)
    assert distance(outputs(net, gradients=False), expected) == 0  # the weights are as they were
    assert set(again.values()) == {torch.float32}


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
def test_bfloat16_leaves_all_that_is_kept_in_float32(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = prepared_step(monkeypatch, Compute(), "bfloat16", discriminator_features=features, r1_weight=1.0)
    values = step(0)
    assert {v.dtype for v in values.values()} == {torch.float32}
    assert {t.dtype for t in tensors(step.state_dict()).values()} == {torch.float32}
    for net in (*step.networks().values(), step.teacher):
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in net.parameters() if p.grad is not None} <= {torch.float32}
    plain = adm_step(divergence="jensen_shannon", discriminator_features=features, r1_weight=1.0)(0)
    assert values["fake_score_loss"] != plain["fake_score_loss"]
    assert float(values["fake_score_loss"]) == pytest.approx(float(plain["fake_score_loss"]), rel=0.03)


@both
def test_channels_last_runs_as_such_and_gives_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    net, plain = prepared(CHANNELS_LAST, **changes), network(1, **changes)

    def is_channels_last(x: Tensor, y: Tensor) -> bool:
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

    seen, usual = watch_convolutions(net, is_channels_last), watch_convolutions(plain, is_channels_last)
    found, expected = outputs(net), outputs(plain)
    assert distance(found[:3], expected[:3]) < 1e-5  # found: 1e-6
    assert distance(found[3:], expected[3:]) < 1e-4  # found: 3e-6
    assert {name for name, yes in seen.items() if not yes} == {"model.enc.4x4_conv"}  # the image itself comes as it is
    assert sum(usual.values()) < len(usual) / 2  # behind attention alone
    for name, n in (("one", net), ("other", plain)):
        save_network(n, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert all(p.is_contiguous() for p in load_network(tmp_path / "one").parameters())


@pytest.mark.parametrize("first", [CHANNELS_LAST, Compute()], ids=["from channels last", "to channels last"])
def test_checkpoints_load_across_layouts(first: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages and optimisers go on in the layout of the new run, with the numbers of the old one."""
    second = Compute(channels_last=not first.channels_last)
    before, after = (prepared_step(monkeypatch, compute, "float32") for compute in (first, second))
    before(0)
    checkpoint.save(tmp_path, BATCH, before.state_dict())
    layouts = {name: p.stride() for name, p in after.student.named_parameters()}
    state, _ = checkpoint.load_newest(tmp_path)
    assert state is not None
    after.load_state_dict(state)
    expected = tensors(before.state_dict())
    assert all(torch.equal(t, expected[name]) for name, t in tensors(after.state_dict()).items())
    start = {name: t.clone() for name, t in expected.items()}
    before(BATCH), after(BATCH)
    assert {name: p.stride() for name, p in after.student.named_parameters()} == layouts
    assert any(
        s != p.contiguous().stride() for s, p in zip(layouts.values(), after.student.parameters(), strict=True)
    ) is (second.channels_last)
    for role in ("networks/student", "networks/fake_score", "emas/student"):
        one, other, old = (
            torch.cat([t.flatten() for name, t in tree.items() if name.startswith(f"/{role}/")])
            for tree in (tensors(before.state_dict()), tensors(after.state_dict()), start)
        )
        assert (one - other).norm() < 3e-3 * (one - old).norm()  # found: 1e-4


def saved_bytes(net: Preconditioned) -> tuple[int, list[Tensor]]:
    """Bytes that a pass keeps for its backward pass, weights aside, and what ``outputs`` gives."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = outputs(net)
    return sum(kept.values()), found


@both
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same(changes: dict[str, Any], precision: str) -> None:
    whole, expected = saved_bytes(prepared(Compute(), precision, **changes))
    net = prepared(Compute(gradient_checkpointing=True), precision, **changes)
    passes: list[int] = []
    net.model.dec["4x4_up"].norm0.register_forward_hook(lambda *_: passes.append(1))
    less, found = saved_bytes(net)
    assert distance(found, [t.float() for t in expected]) < 1e-6
    assert less < 0.4 * whole  # found: 0.22
    assert len(passes) == 4  # denoise and generate, each once more on the way back; the features need no decoder
    with torch.no_grad():
        net.generate(X, COND)
    assert len(passes) == 5


def test_gradient_checkpointing_changes_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sparing = (
        prepared_step(monkeypatch, Compute(gradient_checkpointing=yes), "float32") for yes in (False, True)
    )
    plain(0), sparing(0)
    expected = tensors(plain.state_dict())
    assert all(torch.allclose(t, expected[name], atol=1e-6) for name, t in tensors(sparing.state_dict()).items())


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The compiler's counters; to give up where it would quietly fall back is an error."""
    import torch._dynamo as dynamo

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    dynamo.reset()
    dynamo.utils.counters.clear()
    with dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        yield dynamo.utils.counters
    dynamo.reset()


KINDS = SONG | {"attn_resolutions": [4, 2], "channel_mult": [1, 1]}  # attention at two resolutions, down and up


@pytest.mark.slow
def test_every_kind_of_block_is_compiled_whole(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More kinds than the compiler makes variants of, unless told, with and without gradients. Not down to C++."""
    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda *a, **k: compile_block(*a, backend="aot_eager", **k))
    net, plain = prepared(Compute(compile=True), **KINDS), network(1, **KINDS)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert distance(outputs(net, gradients), outputs(plain, gradients)) < 1e-4
    assert compiler["frames"]["ok"] == compiler["frames"]["total"] > 8
    assert not compiler["graph_break"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_compiled_network_gives_the_same(compiler: Any) -> None:
    """In C++, without gradients: these are compiled in the training below."""
    net, plain = prepared(Compute(compile=True), **KINDS), network(1, **KINDS)
    with torch.no_grad():
        assert distance(outputs(net, gradients=False), outputs(plain, gradients=False)) < 1e-4
    assert compiler["frames"]["ok"] == compiler["frames"]["total"] > 8
    assert not compiler["graph_break"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_training_is_compiled_from_the_second_update_on(compiler: Any, tmp_path: Path) -> None:
    """The first one's operations are counted, which must not turn the compiler off for good."""
    settings = Tsm.model_validate({"images": 3 * BATCH, "batch_size": BATCH, "optimizer": ADAM})
    outcomes, small = [], {"channel_mult": [1]}
    for compute in (Compute(), Compute(compile=True)):
        nets = (prepare(network(seed, **small), CPU, "float32", compute) for seed in (2, 1))
        step = TsmStep(*nets, data(), settings, Draws(0))
        outcomes.append((step, train(step, tmp_path / str(compute.compile), Schedule(settings.images, 1, 1))))
    assert compiler["frames"]["ok"] > 0
    (plain, eager), (compiled, fast) = outcomes
    assert fast.flops == eager.flops > 0
    expected = tensors(plain.state_dict())
    assert all(torch.allclose(t, expected[name], atol=1e-4) for name, t in tensors(compiled.state_dict()).items())
