"""A student as a pipeline that diffusers runs in one step, for use without this package.

``StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)`` draws with ``num_inference_steps=1,
guidance_scale=0`` what ``LatentDenoiser.generate`` and the VAE draw. Routing between students is not in it: one folder
is one student.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import diffusers
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import save_file

from msd import store
from msd.config import Schedule, TextNetwork
from msd.errors import ConfigError
from msd.networks.diffusers_files import WEIGHTS
from msd.networks.latent import LatentDenoiser
from msd.text.encoder_files import CLIP, parts_of
from msd.weights import SUFFIXES, weights_files

COPIED = ("vae", "text_encoder", "tokenizer")
PARTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
LEFT_OUT = ("feature_extractor", "image_encoder", "safety_checker")


def write_pipeline(student: LatentDenoiser, components: Path, out: Path) -> None:
    """Write a diffusers folder, whole or not at all.

    Args:
        student: the one-step generator, as ``build_latent`` or ``load_network`` made it.
        components: the teacher's diffusers folder, of which ``vae/``, ``text_encoder/`` and ``tokenizer/`` are copied.
        out: the folder, which must not exist or be empty.

    Raises:
        MissingFileError, UnsafeFileError, DamagedFileError: the components lack a file or have pickles only.
        ConfigError: the components are not those of the student or not those of Stable Diffusion, or ``out`` is in use.
    """
    _check(student, components)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("The folder of a pipeline is in use.", where=str(out), todo="Name a new one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        aside = Path(folder) / "pipeline"
        _write_unet(student, aside / "unet")
        one_step(TextNetwork.model_validate(student.description["network"]).schedule).save_pretrained(
            aside / "scheduler"
        )
        for name in COPIED:
            shutil.copytree(components / name, aside / name, ignore=_not_needed)
        store.write_json(
            aside / "model_index.json",
            {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
            | PARTS
            | {name: [None, None] for name in LEFT_OUT}
            | {"requires_safety_checker": False},
        )
        aside.rename(out)


def one_step(schedule: Schedule) -> DDIMScheduler:
    """The scheduler whose single step goes from the last level to x0: trailing, ᾱ = 1 at its end, nothing clipped."""
    return DDIMScheduler(
        num_train_timesteps=schedule.steps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,  # means nothing for trailing steps; pipelines warn of another
        prediction_type="epsilon",
    )


def _check(student: LatentDenoiser, components: Path) -> None:
    """Whether VAE and text encoder are of the student's sizes, and no pickles."""
    parts = parts_of(components)
    if parts.kind != CLIP:
        raise ConfigError(
            "A diffusers pipeline cannot have this text encoder.",
            where=str(parts.model),
            why=f"it is a {parts.kind}; StableDiffusionPipeline loads CLIP text models only",
            todo="Draw with `msd sample --bundle FOLDER --prompt TEXT`.",
        )
    weights_files(components / "vae", WEIGHTS)
    vae, encoder = (store.read_json(folder / "config.json") for folder in (components / "vae", parts.model))
    expected = {"latent channels": student.image_shape[0], "states": student.text_shape}
    found = {
        "latent channels": vae.get("latent_channels"),
        "states": (encoder.get("max_position_embeddings"), encoder.get("hidden_size")),
    }
    if found != expected:
        raise ConfigError(
            "The components of a pipeline are not those of the student.",
            where=str(components),
            why="; ".join(f"{n}: {found[n]} for {expected[n]}" for n in expected if found[n] != expected[n]),
            todo="Give the folder that the teacher came from.",
        )


def _write_unet(student: LatentDenoiser, folder: Path) -> None:
    unet = student.model.unet
    unet.save_config(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in unet.state_dict().items()}
    store.write_with(folder / WEIGHTS, partial(save_file, tensors, metadata={"format": "pt"}))


def _not_needed(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(SUFFIXES)]
