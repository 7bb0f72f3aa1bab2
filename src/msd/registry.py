"""Known teachers: published networks by name, where they are, under which licence, and what they make; and Inception.

Data only; ``download`` and ``weights`` fetch. A sha256 stands here only where the publisher's file is known to have
it. Elsewhere it is None: then the digest of the first download on a machine is recorded and enforced from there on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EDM_FOLDER = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
EDM_LICENCE = "CC BY-NC-SA 4.0"
EDM_ARCHITECTURES = {"adm": "ADM", "vp": "DDPM++", "ve": "NCSN++"}  # by the last part of a file's name


@dataclass(frozen=True)
class UrlFile:
    """One file at a fixed address.

    Attributes:
        sha256: of its bytes, where it is known for sure.
    """

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class HubFolder:
    """Files of one commit of a repository on the Hugging Face hub.

    Attributes:
        revision: the commit, so that the files cannot change.
        files: path in the repository → sha256, or None: the commit alone vouches for it.
    """

    repo: str
    revision: str
    files: Mapping[str, str | None]

    @property
    def url(self) -> str:
        """The page of the commit."""
        return f"https://huggingface.co/{self.repo}/tree/{self.revision}"


@dataclass(frozen=True)
class KnownTeacher:
    """A published teacher.

    Attributes:
        place: where its weights are.
        licence: of the weights; it is the user's to keep.
        resolution: height and width of its images.
        classes: that it is conditioned on; 0: unconditional; None: conditioned on text.
        architecture: the network's common name.
    """

    place: UrlFile | HubFolder
    licence: str
    resolution: int
    classes: int | None
    architecture: str

    @property
    def conditions(self) -> str:
        """In words, for tables."""
        if self.classes is None:
            return "text"
        return f"{self.classes} classes" if self.classes else "none"


def _edm(name: str, resolution: int, classes: int) -> dict[str, KnownTeacher]:
    place = UrlFile(f"{EDM_FOLDER}/{name}.pkl")
    architecture = EDM_ARCHITECTURES[name.rsplit("-", 1)[1]]
    return {name: KnownTeacher(place, EDM_LICENCE, resolution, classes, architecture)}


# the FID network of 2015, converted from TensorFlow by torch-fidelity; Apache-2.0
INCEPTION = UrlFile(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)

KNOWN: dict[str, KnownTeacher] = {
    **_edm("edm-imagenet-64x64-cond-adm", 64, 1000),
    **_edm("edm-cifar10-32x32-cond-vp", 32, 10),
    **_edm("edm-cifar10-32x32-cond-ve", 32, 10),
    **_edm("edm-cifar10-32x32-uncond-vp", 32, 0),
    **_edm("edm-cifar10-32x32-uncond-ve", 32, 0),
    **_edm("edm-ffhq-64x64-uncond-vp", 64, 0),
    **_edm("edm-ffhq-64x64-uncond-ve", 64, 0),
    **_edm("edm-afhqv2-64x64-uncond-vp", 64, 0),
    **_edm("edm-afhqv2-64x64-uncond-ve", 64, 0),
    "stable-diffusion-v1-5": KnownTeacher(
        HubFolder(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            {
                "model_index.json": None,
                "scheduler/scheduler_config.json": None,
                "text_encoder/config.json": None,
                "text_encoder/model.safetensors": "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
                "tokenizer/merges.txt": None,
                "tokenizer/special_tokens_map.json": None,
                "tokenizer/tokenizer_config.json": None,
                "tokenizer/vocab.json": None,
                "unet/config.json": None,
                "unet/diffusion_pytorch_model.safetensors": (
                    "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
                ),
                "vae/config.json": None,
                "vae/diffusion_pytorch_model.safetensors": (
                    "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
                ),
            },
        ),
        licence="CreativeML OpenRAIL-M",
        resolution=512,
        classes=None,
        architecture="latent UNet",
    ),
}


def table() -> str:
    """The registry as a table of plain text, for ``msd teacher list``."""
    rows = [("name", "pixels", "conditions", "architecture", "licence", "where")]
    rows += [
        (name, f"{t.resolution}×{t.resolution}", t.conditions, t.architecture, t.licence, t.place.url)
        for name, t in KNOWN.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
