"""Stable Diffusion's files in: the same numbers as diffusers gives; and out: a pipeline that draws what ours draws."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers_folder import LENGTH, make_folder, make_unet
from safetensors.torch import load_file, save_file
from tiny_latent import LATENT_SHAPE, WIDTH, text_network
from torch import Tensor

from msd.bundle.pipeline import write_pipeline
from msd.config import Compute
from msd.draws import Draws
from msd.errors import ConfigError, DamagedFileError, MissingFileError, MsdError, UnsafeFileError
from msd.networks import load_network
from msd.networks.diffusers_files import ORIGINAL, WEIGHTS, _renamed, adopt_pipeline, adopt_single_file
from msd.networks.latent import LatentDenoiser, TextUNet
from msd.networks.levers import prepare
from msd.networks.published import SD15
from msd.store import read_json, sha256_file, write_json
from msd.text.encoder import open_encoder
from msd.weights import NETWORK_FORMAT, fetch_weights, read_header

PROMPTS = ["a dog on a red bike", "", "a cat " * 20]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture(scope="module")
def teacher(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> LatentDenoiser:
    out = tmp_path_factory.mktemp("adopted") / "teacher.safetensors"
    adopt_pipeline(whole, out)
    net = load_network(out)
    assert isinstance(net, LatentDenoiser)
    return net


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file; None takes them out."""
    write_json(path, {name: value for name, value in (read_json(path) | values).items() if value is not None})


def prompt_states(folder: Path, prompts: list[str]) -> Tensor:
    return open_encoder(folder, "cpu").encode(prompts).hidden


# --- in: a folder ---


@torch.no_grad()
def test_adopted_network_is_the_folders(whole: Path, teacher: LatentDenoiser) -> None:
    unet = UNet2DConditionModel.from_pretrained(whole / "unet").eval()
    text = prompt_states(whole, PROMPTS)
    assert (teacher.image_shape, teacher.text_shape) == (LATENT_SHAPE, (LENGTH, WIDTH))
    assert torch.equal(teacher.empty, text[1])
    noise, t = Draws(0).normal("x", 0, (3, *LATENT_SHAPE)), torch.tensor([0, 400, 999])
    assert torch.equal(teacher.model(noise, t, text)[0], unet(noise, t, encoder_hidden_states=text).sample)
    alphas = DDPMScheduler.from_pretrained(whole / "scheduler").alphas_cumprod
    assert torch.equal(teacher.alphas.float(), alphas)


def test_origin_names_what_was_read(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    origin = adopt_pipeline(whole, out)
    source = origin["converted_from"]
    assert source["sha256"] == sha256_file(whole / "unet" / WEIGHTS)
    assert source["config"] == json.loads((whole / "unet/config.json").read_text())
    assert source["schedule"] == {"steps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
    assert source["text_encoder_sha256"] == open_encoder(whole, "cpu").sha256
    assert origin == read_json(out.with_suffix(".json"))
    path, found = fetch_weights({"source": "file", "path": str(out), "sha256": None})  # as a configuration names it
    assert (path, found) == (out, origin)
    assert read_header(out, NETWORK_FORMAT).description["image_shape"] == list(LATENT_SHAPE)


def test_betas_are_the_schedulers(folder: Path, tmp_path: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", beta_end=0.02)
    adopt_pipeline(folder, tmp_path / "out.safetensors")
    net = load_network(tmp_path / "out.safetensors")
    assert isinstance(net, LatentDenoiser)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    assert torch.equal(net.alphas.float(), scheduler.alphas_cumprod)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(half: torch.dtype, folder: Path, tmp_path: Path) -> None:
    tensors = {name: t.to(half) for name, t in load_file(folder / "unet" / WEIGHTS).items()}
    save_file(tensors, folder / "unet" / WEIGHTS)
    adopt_pipeline(folder, tmp_path / "out.safetensors")
    found = load_network(tmp_path / "out.safetensors").state_dict()
    assert {t.dtype for t in found.values()} == {torch.float32}
    assert all(torch.equal(found[f"model.unet.{name}"], t.float()) for name, t in tensors.items())


def test_shards_are_put_together(folder: Path, tmp_path: Path, teacher: LatentDenoiser) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    make_unet().save_pretrained(folder / "unet", max_shard_size="100KB")
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    origin = adopt_pipeline(folder, tmp_path / "out.safetensors")
    found = load_network(tmp_path / "out.safetensors").state_dict()
    assert all(torch.equal(found[name], t) for name, t in teacher.state_dict().items())
    assert origin["converted_from"]["shards"] == {path.name: sha256_file(path) for path in shards}
    shards[0].unlink()
    with pytest.raises(MissingFileError, match=shards[0].name):
        adopt_pipeline(folder, tmp_path / "again.safetensors")


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "unet" / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    (folder / "unet" / WEIGHTS).unlink()


def cut(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def without_one(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    tensors.pop("conv_in.weight")
    save_file(tensors, folder / "unet" / WEIGHTS)


def scheduler(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "scheduler/scheduler_config.json", **values)


def unet(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "unet/config.json", **values)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (as_pickle, UnsafeFileError, "pickle; it was not read"),
        (lambda folder: (folder / "unet" / WEIGHTS).unlink(), MissingFileError, WEIGHTS),
        (lambda folder: (folder / "unet/config.json").unlink(), MissingFileError, "config.json"),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), MissingFileError, "scheduler"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), MissingFileError, "vocabulary"),
        (cut, DamagedFileError, "cannot be read"),
        (without_one, DamagedFileError, "1 missing: model.unet.conv_in.weight"),
        (unet(block_out_channels=[8, 32]), DamagedFileError, "of another shape"),
        (scheduler(prediction_type="v_prediction"), ConfigError, "prediction_type 'v_prediction'"),
        (scheduler(beta_schedule="linear"), ConfigError, "beta_schedule 'linear'"),
        (scheduler(beta_schedule=None), ConfigError, "beta_schedule None"),
        (scheduler(num_train_timesteps=100), ConfigError, "num_train_timesteps 100"),
        (scheduler(rescale_betas_zero_snr=True), ConfigError, "rescale_betas_zero_snr True"),
        (scheduler(trained_betas=[0.1]), ConfigError, r"trained_betas \[0.1\]"),
        (scheduler(beta_start=None), ConfigError, "beta_start"),
        (unet(in_channels=9), ConfigError, "9 channels in, 4 out"),
        (unet(sample_size=[8, 16]), ConfigError, "sample_size"),
        (unet(_class_name="UNetMotionModel"), ConfigError, "UNetMotionModel"),
        (unet(cross_attention_dim=32), ConfigError, "12 states of width 32, the encoder makes 12 of 16"),
        (unet(class_embed_type="timestep"), ConfigError, "class_embed_type"),
    ],
)
def test_what_would_be_wrong_is_refused(
    spoil: Callable[[Path], None], error: type[MsdError], message: str, folder: Path, tmp_path: Path
) -> None:
    spoil(folder)
    out = tmp_path / "out" / "teacher.safetensors"
    with pytest.raises(error, match=message):
        adopt_pipeline(folder, out)
    assert not out.exists()


# --- in: one file ---

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_name(name: str, layers: int) -> str:
    """diffusers' name of a UNet's tensor → that of Stable Diffusion's first release (what ours has to undo)."""
    for new, old in ENDS.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old)
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name)
    if middle:
        kind, i, rest = middle.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{inner(kind, rest)}"
    way, level, kind, i, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+?)\.(\d)\.(.+)", name).groups()
    blocks, start = {"down": ("input_blocks", 1), "up": ("output_blocks", 0)}[way]
    number = start + int(level) * (layers + 1) + int(i)
    if kind == "downsamplers":
        return f"{blocks}.{number + layers}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # behind the attention where there is one; the first block up has none
        return f"{blocks}.{number + layers}.{1 if level == '0' else 2}.{rest}"
    return f"{blocks}.{number}.{0 if kind == 'resnets' else 1}.{inner(kind, rest)}"


def inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    layer, _, end = rest.partition(".")
    return f"{RESNET[layer]}.{end}"


DEEP = {  # Stable Diffusion's own kinds of blocks, at three levels
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
ARCHITECTURE = text_network(LENGTH, **DEEP), LATENT_SHAPE


@pytest.fixture
def original() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A UNet under diffusers' names, and as one file of the original layout, with parts of the other networks."""
    tensors = make_unet(**DEEP).state_dict()
    renamed = {f"{ORIGINAL}{original_name(n, 2)}": t.clone() for n, t in tensors.items()}
    assert len(renamed) == len(tensors)
    return tensors, renamed | {"first_stage_model.x": torch.zeros(1), "alphas_cumprod": torch.zeros(1)}


@pytest.mark.parametrize("averaged", [False, True])
def test_single_file_gives_the_same_network(
    averaged: bool, original: tuple[dict[str, Tensor], dict[str, Tensor]], whole: Path, tmp_path: Path
) -> None:
    expected, tensors = original
    if averaged:  # the averages are meant, under their flat names
        shift = len("model.")
        ema = {"model_ema." + n[shift:].replace(".", ""): t for n, t in tensors.items() if n.startswith("model.")}
        tensors = {n: torch.zeros_like(t) for n, t in tensors.items()} | ema
    save_file({n: t.half() for n, t in tensors.items()}, tmp_path / "sd.safetensors")
    origin = adopt_single_file(tmp_path / "sd.safetensors", whole, tmp_path / "out.safetensors", ARCHITECTURE)
    found = load_network(tmp_path / "out.safetensors").state_dict()
    assert all(torch.equal(found[f"model.unet.{n}"], t.half().float()) for n, t in expected.items())
    assert torch.equal(found["empty"], prompt_states(whole, [""])[0])
    assert origin["converted_from"]["averaged"] == averaged
    assert origin["converted_from"]["sha256"] == sha256_file(tmp_path / "sd.safetensors")


def test_every_name_of_stable_diffusion_is_known() -> None:
    with torch.device("meta"):
        tensors = TextUNet(SD15["unet"]).unet.state_dict()
    assert len(tensors) == 686
    found = _renamed({f"{ORIGINAL}{original_name(n, 2)}": t for n, t in tensors.items()}, 2, Path("sd.safetensors"))
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in tensors.items()}


def test_single_file_that_is_another_is_refused(
    original: tuple[dict[str, Tensor], dict[str, Tensor]], whole: Path, tmp_path: Path
) -> None:
    _, tensors = original
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"first_stage_model.x": torch.zeros(1)}, "no tensor model.diffusion_model"),
        (tensors | {f"{ORIGINAL}label_emb.0.0.weight": torch.zeros(1)}, "have a known name"),
        ({n: t for n, t in tensors.items() if n != f"{ORIGINAL}input_blocks.0.0.weight"}, "1 missing"),
        (tensors | {f"{ORIGINAL}input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}, "of another shape"),
        ({f"{ORIGINAL}double_blocks.0.weight": torch.zeros(1)}, "not that of a Stable Diffusion UNet"),
    ]
    path, out = tmp_path / "sd.safetensors", tmp_path / "out.safetensors"
    for held, message in cases:
        save_file(held, path)
        with pytest.raises(DamagedFileError, match=message):
            adopt_single_file(path, whole, out, ARCHITECTURE)
    with pytest.raises(ConfigError, match="77 states of width 768"):
        adopt_single_file(path, whole, out)  # Stable Diffusion itself, with a tiny text encoder
    path.rename(tmp_path / "sd.ckpt")
    with pytest.raises(UnsafeFileError, match="not read"):
        adopt_single_file(tmp_path / "sd.ckpt", whole, out, ARCHITECTURE)
    with pytest.raises(MissingFileError):
        adopt_single_file(path, whole, out, ARCHITECTURE)
    assert not out.exists()


# --- out: a pipeline ---


@pytest.fixture(scope="module")
def pipeline(whole: Path, teacher: LatentDenoiser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipelines") / "student"
    write_pipeline(teacher, whole, out)
    return out


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_pipeline_draws_what_the_student_draws(pipeline: Path, whole: Path, teacher: LatentDenoiser) -> None:
    loaded = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    noise = Draws(4).normal("noise", 0, (len(PROMPTS), *LATENT_SHAPE))
    settings: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 0, "latents": noise}
    latents = teacher.generate(noise, prompt_states(whole, PROMPTS))
    found = loaded(PROMPTS, output_type="latent", **settings).images
    assert relative(found, latents) < 1e-5  # found: 6e-8
    assert loaded.scheduler.timesteps.tolist() == [999]
    decoded = loaded.vae.decode(latents / loaded.vae.config.scaling_factor).sample
    pictures = loaded(PROMPTS, output_type="pt", **settings).images
    assert pictures.shape == (len(PROMPTS), 3, 16, 16)
    assert relative(pictures, (decoded / 2 + 0.5).clamp(0, 1)) < 1e-5


def test_pipeline_can_be_a_teacher_again(pipeline: Path, teacher: LatentDenoiser, tmp_path: Path) -> None:
    adopt_pipeline(pipeline, tmp_path / "again.safetensors")
    found = load_network(tmp_path / "again.safetensors").state_dict()
    assert all(torch.equal(found[name], t) for name, t in teacher.state_dict().items())


def test_pipeline_has_the_betas_of_the_student(folder: Path, tmp_path: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", beta_end=0.02)
    adopt_pipeline(folder, tmp_path / "teacher.safetensors")
    student = load_network(tmp_path / "teacher.safetensors")
    assert isinstance(student, LatentDenoiser)
    write_pipeline(student, folder, tmp_path / "out")
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out/scheduler")
    assert torch.equal(scheduler.alphas_cumprod, student.alphas.float())


def test_pipeline_leaves_pickles_behind(folder: Path, teacher: LatentDenoiser, tmp_path: Path) -> None:
    torch.save({}, folder / "vae/diffusion_pytorch_model.bin")
    student = prepare(copy.deepcopy(teacher), torch.device("cpu"), "float32", Compute(channels_last=True))
    write_pipeline(student, folder, tmp_path / "out")
    endings = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert endings == {".json", ".txt", ".safetensors"}
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_pipeline_of_parts_that_do_not_fit_is_refused(folder: Path, teacher: LatentDenoiser, tmp_path: Path) -> None:
    out = tmp_path / "out"
    used = tmp_path / "used"
    (used / "something").mkdir(parents=True)
    with pytest.raises(ConfigError, match="in use"):
        write_pipeline(teacher, folder, used)
    change(folder / "vae/config.json", latent_channels=16)
    with pytest.raises(ConfigError, match="latent channels: 16 for 4"):
        write_pipeline(teacher, folder, out)
    (folder / "vae" / WEIGHTS).rename(folder / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeFileError):
        write_pipeline(teacher, folder, out)
    assert not out.exists()


def test_pipeline_with_another_text_encoder_is_refused(folder: Path, teacher: LatentDenoiser, tmp_path: Path) -> None:
    change(folder / "text_encoder/config.json", model_type="bert")
    (folder / "tokenizer/vocab.txt").write_text("a")
    with pytest.raises(ConfigError, match="loads CLIP text models only"):
        write_pipeline(teacher, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
