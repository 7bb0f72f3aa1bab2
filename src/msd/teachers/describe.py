"""What an experiment's teacher is: architecture, images and classes, from the least that says so."""

from __future__ import annotations

from pathlib import Path

from msd.config import (
    DiffusersSource,
    FolderComponents,
    HubTeacherSource,
    KnownSource,
    Network,
    TeacherTrainSource,
    TextNetwork,
    TinyComponents,
)
from msd.data.images import arrays
from msd.data.lmdb_rows import open_rows
from msd.data.prepare import shaping_of
from msd.data.sources import open_source
from msd.errors import ConfigError
from msd.latent import factor_of
from msd.networks.edm_pickle import read_edm_pickle
from msd.networks.files import described_network
from msd.networks.published import LATENT_CHANNELS, LATENT_FACTOR, published_network, published_text_network
from msd.plan import Plan
from msd.registry import KNOWN
from msd.store import read_json
from msd.weights import NETWORK_FORMAT, fetch_weights, read_header

Description = tuple[Network | TextNetwork, tuple[int, int, int], int]


def describe_teacher(plan: Plan) -> Description:
    """Architecture, image shape (C, H, W) and number of classes of the teacher. Loads no weights, and downloads none of
    a known teacher.

    Raises:
        MissingFileError, DataError: the teacher is trained here, and the data that say how large its images are cannot
            be read.
        DamagedFileError, DownloadError, UnsafeFileError: the teacher's file cannot be had or read.
    """
    source = plan.experiment.teacher
    if isinstance(source, TeacherTrainSource):
        data = plan.experiment.data
        if data.source == "dmd2-latents":
            with open_rows(Path(data.path or "")) as rows:
                _, channels, height, width = rows.shape("latents")
            return source.network, (channels, height, width), 0
        images = open_source(data.source, data.path or "", data.classes)
        channels, height, width = next(arrays(images, shaping_of(images, data))).shape
        if isinstance(source.network, TextNetwork):
            return source.network, _latent_shape(plan, height, width), 0
        return source.network, (channels, height, width), images.num_classes
    if isinstance(source, KnownSource):
        if KNOWN[source.name].classes is None:
            return *published_text_network(KNOWN[source.name]), 0
        network, image_shape, classes = published_network(KNOWN[source.name])
        return source.network or network, image_shape, classes
    if isinstance(source, DiffusersSource) or (isinstance(source, HubTeacherSource) and source.filename is None):
        raise ConfigError(
            "A diffusers teacher is described when it is adopted.",
            where="teacher",
            todo="Run `msd teacher` first, and name what it wrote: {source: file, path: …/weights.safetensors}.",
        )
    path, _ = fetch_weights(source.model_dump(mode="json"))
    if path.suffix == ".pkl":
        file = read_edm_pickle(path)
        return file.network, file.image_shape, file.num_conditions
    return described_network(read_header(path, NETWORK_FORMAT).description, path)


def _latent_shape(plan: Plan, height: int, width: int) -> tuple[int, int, int]:
    """Of images of height × width pixels, by the autoencoder of the components; Stable Diffusion's is known."""
    text = plan.experiment.text
    channels, factor = LATENT_CHANNELS, LATENT_FACTOR
    if text is not None and isinstance(text.components, TinyComponents):
        made = text.components.autoencoder
        channels, factor = made.latent_channels, 2 ** (len(made.channels) - 1)
    elif text is not None and isinstance(text.components, FolderComponents):
        config = read_json(Path(text.components.path) / "vae" / "config.json")
        channels, factor = config["latent_channels"], factor_of(config)
    return channels, height // factor, width // factor
