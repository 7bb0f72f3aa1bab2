"""Networks: their files are exact or refused, their seams agree, their heads see what they are shown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CLASSES, IMAGE_SHAPE, network

from msd.config import Network
from msd.errors import DamagedFileError, MissingFileError
from msd.networks import load_network, save_network
from msd.networks.adm import group_norm
from msd.networks.discriminator import Discriminator
from msd.networks.files import build_network, raw_network, write_safetensors
from msd.weights import METADATA_KEY, NETWORK_FORMAT


def batch(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, *IMAGE_SHAPE, generator=generator),
        torch.tensor([0.1, 1.0, 50.0])[:count],
        torch.arange(count),
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_network(network(), path)
    return path


def test_file_round_trip_is_exact(saved: Path) -> None:
    before, after = network(), load_network(saved)
    assert after.description == before.description
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(t, after.state_dict()[name]) for name, t in before.state_dict().items())
    assert torch.equal(before.denoise(*batch()), after.denoise(*batch()))
    assert not after.training
    assert not any(p.requires_grad for p in after.parameters())


def test_nothing_waits_for_the_compiler(saved: Path) -> None:
    """torch imports it for some operations that do not need it, which takes over a second of every job."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tiny; from msd.networks import load_network\n"
        "load_network(sys.argv[2]); tiny.adm_step()(0); sys.exit('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(saved)]
    assert subprocess.run(command, timeout=100).returncode == 0


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        load_network(tmp_path / "nowhere.safetensors")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as f:
        return dict(f.metadata())


def spoil_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_text(path: Path) -> None:
    path.write_text("not a network " * 100)


def spoil_no_format(path: Path) -> None:
    save_file(load_file(path), path)


def spoil_other_format(path: Path) -> None:
    write_safetensors(path, load_file(path), "msd-classifier-1", {})


def spoil_missing_tensor(path: Path) -> None:
    tensors, metadata = load_file(path), metadata_of(path)
    del tensors["model.out_conv.weight"]
    save_file(tensors, path, metadata=metadata)


def spoil_other_shape(path: Path) -> None:
    tensors, metadata = load_file(path), metadata_of(path)
    tensors["model.out_conv.bias"] = torch.zeros(99)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_truncated,
        spoil_empty,
        spoil_text,
        spoil_no_format,
        spoil_other_format,
        spoil_missing_tensor,
        spoil_other_shape,
    ],
)
def test_spoilt_file_is_one_clear_error(spoil: Callable[[Path], None], saved: Path) -> None:
    spoil(saved)
    with pytest.raises(DamagedFileError) as damaged:
        load_network(saved)
    assert damaged.value.where == str(saved)
    assert damaged.value.why


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_one_flipped_bit_anywhere_is_found(share: float, saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(DamagedFileError, match="weights file"):
        load_network(saved)


@pytest.mark.parametrize("description", [{}, [], {"network": {"model_chanels": 8}}])
def test_description_that_describes_nothing(description: object, saved: Path) -> None:
    write_safetensors(saved, load_file(saved), NETWORK_FORMAT, description)
    with pytest.raises(DamagedFileError):
        load_network(saved)


@pytest.mark.parametrize("text", ["not json", "[]", "{}"])
def test_metadata_that_say_nothing(text: str, saved: Path) -> None:
    save_file(load_file(saved), saved, metadata={METADATA_KEY: text})
    with pytest.raises(DamagedFileError):
        load_network(saved)


def test_equal_content_gives_equal_bytes(saved: Path, tmp_path: Path) -> None:
    save_network(load_network(saved), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_weights_are_a_function_of_the_seed() -> None:
    description = Network(model_channels=8, channel_mult=[1], num_blocks=1)
    torch.manual_seed(0)
    undisturbed = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (build_network(description, image_shape=(1, 8, 8), num_conditions=4, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.rand(3), undisturbed)  # the global generator is untouched
    weights = [net.model.map_label.weight for net in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_pixel_unshuffle_changes_the_inside_only(fold: int) -> None:
    net = network(pixel_unshuffle=fold)
    assert net.model.enc[f"{8 // fold}x{8 // fold}_conv"].in_channels == fold**2
    x0, features = net.denoise_with_features(*batch())
    assert x0.shape == (3, *IMAGE_SHAPE)
    assert features.shape == (3, 16, 4 // fold, 4 // fold)
    assert net.features_shape == (16, 4 // fold)
    assert net.num_conditions == CLASSES


def test_features_are_those_of_the_same_pass() -> None:
    net = network()
    x0, features = net.denoise_with_features(*batch())
    assert torch.equal(net.denoise(*batch()), x0)
    assert torch.equal(net.features(*batch()), features)
    assert features.std() > 0


def test_generate_is_one_denoising_at_the_highest_level() -> None:
    net, (noise, _, cond) = network(), batch()
    assert torch.equal(net.generate(noise, cond), net.denoise(80.0 * noise, torch.tensor(80.0), cond))
    assert net.noise_grid[0] == pytest.approx(0.002)
    assert net.noise_grid[-1] == pytest.approx(80.0)


def test_output_depends_on_every_argument() -> None:
    net, (x, sigma, cond) = network(), batch()
    x0 = net.denoise(x, sigma, cond)
    for changed in ((x + 0.1, sigma, cond), (x, sigma * 1.1, cond), (x, sigma, (cond + 1) % CLASSES)):
        assert (net.denoise(*changed) - x0).abs().amax(dim=(1, 2, 3)).min() > 1e-6


def test_precondition_at_low_noise_is_the_identity() -> None:
    x, _, cond = batch()
    assert (network().denoise(x, torch.tensor(1e-4), cond) - x).abs().max() < 1e-3


def test_condition_embeddings_are_one_row_per_class() -> None:
    net = network()
    embeddings = net.condition_embeddings()
    assert embeddings.shape == (CLASSES, 32)
    assert torch.equal(embeddings[2], net.model.map_label.weight[:, 2])


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (16, 4), (32, 8), (128, 32), (768, 32)])
def test_groups_of_the_network_hold_four_channels_or_more(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(("channels", "resolution"), [(32, 7), (16, 7), (8, 2), (64, 4)])
def test_head_tells_features_apart(channels: int, resolution: int) -> None:
    """Its second normalisation sees one pixel: over a single channel that would be zero whatever the input."""
    torch.manual_seed(0)
    head = Discriminator(channels, resolution)
    logits = head(torch.randn(16, channels, resolution, resolution))
    assert logits.shape == (16,)
    assert logits.std() > 1e-3
    inner = head.layers[:5](torch.randn(16, channels, resolution, resolution))
    assert inner.shape[2:] == (1, 1)
    assert inner.std(dim=0).max() > 0.1


def test_head_on_imagenet_features_is_dmd2s() -> None:
    layers = Discriminator(768, 8).layers
    convolutions = [layers[i] for i in (0, 3, 6)]
    assert [(c.kernel_size, c.stride, c.padding, c.out_channels) for c in convolutions] == [
        ((4, 4), (2, 2), (1, 1), 768),
        ((4, 4), (4, 4), (0, 0), 768),
        ((1, 1), (1, 1), (0, 0), 1),
    ]
    assert [layers[i].num_groups for i in (1, 4)] == [32, 32]


def test_song_networks_have_edms_parameters_beside_the_main_path() -> None:
    """Names and shapes as EDM's skip and residual forms have them; what only resamples has no parameters."""
    common = {"architecture": "song", "model_channels": 8, "channel_mult": [1, 2, 2], "num_blocks": 1}
    forms = {"encoder": "skip", "decoder": "skip", "taps": [1, 3, 3, 1]}
    skip = raw_network(Network.model_validate(common | {"song": forms}), (3, 16, 16), 4)
    shapes = {name: tuple(p.shape) for name, p in skip.named_parameters() if "aux" in name}
    assert shapes == {
        "enc.8x8_aux_skip.weight": (8, 3, 1, 1),
        "enc.8x8_aux_skip.bias": (8,),
        "enc.4x4_aux_skip.weight": (16, 3, 1, 1),
        "enc.4x4_aux_skip.bias": (16,),
        **{f"dec.{r}x{r}_aux_norm.{kind}": (c,) for r, c in ((4, 16), (8, 16), (16, 8)) for kind in ("weight", "bias")},
        **{f"dec.{r}x{r}_aux_conv.weight": (3, c, 3, 3) for r, c in ((4, 16), (8, 16), (16, 8))},
        **{f"dec.{r}x{r}_aux_conv.bias": (3,) for r in (4, 8, 16)},
    }
    residual = raw_network(Network.model_validate(common | {"song": {"encoder": "residual"}}), (3, 16, 16), 4)
    shapes = {name: tuple(p.shape) for name, p in residual.named_parameters() if "aux" in name and "weight" in name}
    assert shapes == {
        "enc.8x8_aux_residual.weight": (8, 3, 3, 3),
        "enc.4x4_aux_residual.weight": (16, 8, 3, 3),
        "dec.16x16_aux_norm.weight": (8,),
        "dec.16x16_aux_conv.weight": (3, 8, 3, 3),
    }


def test_skip_decoder_adds_what_every_level_says() -> None:
    settings = {"architecture": "song", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
    forms = {"encoder": "skip", "decoder": "skip"}
    net = raw_network(Network.model_validate(settings | {"song": forms}), (3, 8, 8), 0)
    with torch.no_grad():
        net.dec["4x4_aux_conv"].bias.fill_(2.0)  # all last layers are zero otherwise
        net.dec["8x8_aux_conv"].bias.copy_(torch.tensor([0.0, 1.0, 5.0]))
    out, _ = net(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2))
    assert torch.allclose(out, torch.tensor([2.0, 3.0, 7.0]).reshape(1, 3, 1, 1).expand(2, 3, 8, 8))


@pytest.mark.parametrize(
    "change", [{"model_channels": 2}, {"model_channels": 7}, {"channel_mult": []}, {"song": {"taps": [1.0]}}]
)
def test_impossible_networks_are_refused_by_the_configuration(change: dict[str, object]) -> None:
    good = {"architecture": "song", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
    Network.model_validate(good)
    with pytest.raises(ValueError, match=next(iter(change))):
        Network.model_validate(good | change)
