"""What an experiment's teacher is: architecture, images and classes, from the least that says so."""

from __future__ import annotations

from msd.config import KnownSource, Network, TeacherTrainSource
from msd.data.images import arrays
from msd.data.sources import open_source
from msd.networks.edm_pickle import read_edm_pickle
from msd.networks.files import described_network
from msd.networks.published import published_network
from msd.plan import Plan
from msd.registry import KNOWN
from msd.weights import NETWORK_FORMAT, fetch_weights, read_header


def describe_teacher(plan: Plan) -> tuple[Network, tuple[int, int, int], int]:
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
        images = open_source(data.source, data.path or "", data.classes)
        channels, height, width = next(arrays(images)).shape
        return source.network, (channels, height, width), images.num_classes
    if isinstance(source, KnownSource):
        network, image_shape, classes = published_network(KNOWN[source.name])
        return source.network or network, image_shape, classes
    path, _ = fetch_weights(source.model_dump(mode="json"))
    if path.suffix == ".pkl":
        file = read_edm_pickle(path)
        return file.network, file.image_shape, file.num_conditions
    return described_network(read_header(path, NETWORK_FORMAT).description, path)
