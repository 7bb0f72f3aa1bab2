"""The typed experiment: what params.yaml may say, and the one function that resolves overlays.

Never imports torch: the Snakefile imports this at every parse. Unknown keys are refused with the nearest known one,
and all problems are reported at once. ``docs/params.md`` is generated from the descriptions in here.
"""

from msd.config.base import TEACHER, NonNegative, Section, Share, nearest
from msd.config.experiment import (
    BalancedKMeans,
    Compute,
    Consecutive,
    Evaluation,
    Experiment,
    Explicit,
    PartitionSpec,
    Random,
    StageName,
    StudentVariant,
    TeacherVariant,
    WeightsVariant,
)
from msd.config.load import as_settings, load
from msd.config.networks import Network, Song
from msd.config.recipe import Adm, Dm, Recipe, Regression, Tsm
from msd.config.sources import (
    WITHOUT_PATH,
    ClassifierSource,
    ClassifierTraining,
    ClassifierTrainSource,
    Data,
    DataSource,
    FileSource,
    HubSource,
    KnownSource,
    TeacherSource,
    TeacherTrainSource,
    UrlSource,
)
from msd.config.toy import Pinwheel, Toy, ToyMap, ToyMeasure, ToyStart
from msd.config.training import NoiseDistribution, Optimizer, Sampler, TeacherTraining, Training

__all__ = [
    "TEACHER",
    "WITHOUT_PATH",
    "Adm",
    "BalancedKMeans",
    "ClassifierSource",
    "ClassifierTrainSource",
    "ClassifierTraining",
    "Compute",
    "Consecutive",
    "Data",
    "DataSource",
    "Dm",
    "Evaluation",
    "Experiment",
    "Explicit",
    "FileSource",
    "HubSource",
    "KnownSource",
    "Network",
    "NoiseDistribution",
    "NonNegative",
    "Optimizer",
    "PartitionSpec",
    "Pinwheel",
    "Random",
    "Recipe",
    "Regression",
    "Sampler",
    "Section",
    "Share",
    "Song",
    "StageName",
    "StudentVariant",
    "TeacherSource",
    "TeacherTrainSource",
    "TeacherTraining",
    "TeacherVariant",
    "Toy",
    "ToyMap",
    "ToyMeasure",
    "ToyStart",
    "Training",
    "Tsm",
    "UrlSource",
    "WeightsVariant",
    "as_settings",
    "load",
    "nearest",
]
