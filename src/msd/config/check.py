"""What no single key of an experiment shows: keys that do not go together."""

from __future__ import annotations

import contextlib

from pydantic import ValidationError

from msd.config.base import TEACHER, nearest
from msd.config.experiment import BalancedKMeans, Experiment, Explicit, StudentVariant
from msd.config.networks import Network, TextNetwork
from msd.config.problems import describe
from msd.config.recipe import Recipe
from msd.config.sources import (
    WITH_CAPTIONS,
    ClassifierTrainSource,
    DiffusersSource,
    HubTeacherSource,
    KnownSource,
    TeacherTrainSource,
)
from msd.config.text import DataCaptions, KnownComponents, TinyComponents
from msd.config.text_partition import Hashed, Quadrants, TextKMeans
from msd.config.training import Training
from msd.registry import KNOWN


def cross_check(experiment: Experiment) -> list[str]:
    """Problems that no single field shows."""
    problems = []
    for name in experiment.networks:
        if name == TEACHER:
            problems.append("networks.teacher: this name is reserved for the teacher's own architecture")
    teacher = experiment.teacher
    known = KNOWN.get(teacher.name) if isinstance(teacher, KnownSource) else None
    if isinstance(teacher, KnownSource) and known is None:
        problems.append(f"teacher.name: no known teacher {teacher.name!r}{nearest(teacher.name, list(KNOWN))}")
    if known is not None and (known.classes is None) != (experiment.text is not None):
        problems.append("teacher.name: a teacher that is conditioned on text goes with the section `text`")
    problems += _text_problems(experiment) + _caption_problems(experiment) + _guidance_problems(experiment)
    for claim in experiment.claims:
        for name in claim.variants:
            if name not in experiment.variants:
                known_names = list(experiment.variants)
                problems.append(f"claims.{claim.number}: no variant {name!r}{nearest(name, known_names)}")
    for name, variant in experiment.variants.items():
        if not isinstance(variant, StudentVariant):
            continue
        where = f"variants.{name}"
        if variant.network != TEACHER and variant.network not in experiment.networks:
            names = [TEACHER, *experiment.networks]
            problems.append(f"{where}.network: no network {variant.network!r}{nearest(variant.network, names)}")
        if known is not None and known.classes == 0 and variant.students > 1:
            problems.append(
                f"{where}.students: the teacher is unconditional, there is nothing to split among {variant.students}"
            )
        if isinstance(variant.partition, Explicit) and len(variant.partition.parts) != variant.students:
            problems.append(
                f"{where}.partition.parts: {len(variant.partition.parts)} parts for {variant.students} students"
            )
        if variant.stages not in (["dm"], ["dm", "adm"]):
            problems.append(f"{where}.stages: must be [dm] or [dm, adm], since adm resumes from dm")
        try:
            recipe = experiment.recipe_of(variant)
        except ValidationError as e:
            problems += [f"{where}.recipe.{describe(x, Recipe)}" for x in e.errors()]
            continue
        for stage in variant.stages:
            training: Training = getattr(recipe, stage)
            images = training.images * variant.images
            if images < training.batch_size or images % training.batch_size:
                problems.append(
                    f"{where}.images: {variant.images:g} × {training.images} images of {stage} = {images:g}, "
                    f"not a whole number of batches of {training.batch_size}"
                )
    return problems


def _text_problems(experiment: Experiment) -> list[str]:
    """What speaks of text where there is none, and of pixels where there is."""
    teacher = experiment.teacher.network if isinstance(experiment.teacher, TeacherTrainSource) else None
    used = {variant.network for variant in experiment.variants.values() if isinstance(variant, StudentVariant)}
    networks = {f"networks.{name}": network for name, network in experiment.networks.items() if name in used}
    networks |= {"teacher.network": teacher} if teacher else {}
    text, problems = experiment.text is not None, []
    for where, network in networks.items():
        if isinstance(network, TextNetwork) != text:
            problems.append(f"{where}: architecture unet2d goes with the section `text`, and no other does")
    for name, variant in experiment.variants.items():
        if isinstance(variant, StudentVariant):
            of_text = isinstance(variant.partition, Quadrants | TextKMeans | Hashed)
            if of_text and not text:
                problems.append(f"variants.{name}.partition: kind {variant.partition.kind} splits prompts, see `text`")
            if isinstance(variant.partition, Quadrants) and variant.students not in (1, 2, 4):
                problems.append(f"variants.{name}.students: quadrants make 1, 2 or 4 parts, not {variant.students}")
            if text and isinstance(variant.partition, BalancedKMeans):
                problems.append(f"variants.{name}.partition: kind kmeans is for classes, text-kmeans for prompts")
    if text and any(s.regression for recipe in _recipes(experiment) for s in (recipe.dm, recipe.adm)):
        problems.append("recipe: the regression loss is for classes; set `regression: null` in dm and adm")
    pipeline = isinstance(experiment.teacher, HubTeacherSource) and experiment.teacher.filename is None
    if (isinstance(experiment.teacher, DiffusersSource) or pipeline) and not text:
        problems.append("teacher.source: a diffusers teacher goes with the section `text`")
    components = experiment.text.components if experiment.text else None
    if isinstance(components, KnownComponents):
        known_names = [name for name, known in KNOWN.items() if known.classes is None]
        if components.name not in known_names:
            problems.append(
                f"text.components.name: no teacher {components.name!r}{nearest(components.name, known_names)}"
            )
    return problems


def _caption_problems(experiment: Experiment) -> list[str]:
    """Whether data, judge, reference and partitions suit conditions that are captions of no class, or classes."""
    data, protocol, text = experiment.data, experiment.evaluation.protocol, experiment.text
    captioned = text is not None and isinstance(text.captions, DataCaptions)
    problems = []
    if captioned != (data.source in WITH_CAPTIONS):
        problems.append(
            f"data.source: {' and '.join(WITH_CAPTIONS)} go with text.captions {{source: data}}, no others do"
        )
    if captioned != (experiment.evaluation.judge is None):
        problems.append(f"evaluation.judge: {'set null, captions have no classes' if captioned else 'is needed'}")
    if text is not None and not captioned and protocol.captions is not None:
        problems.append("evaluation.protocol.captions: images are asked for the prompts of their classes; set null")
    spaces = [name for name, features in protocol.spaces.items() if isinstance(features, ClassifierTrainSource)]
    if captioned and spaces:
        problems.append(f"evaluation.protocol: {' and '.join(spaces)}: captions have no classes to train features on")
    if protocol.clip is not None and text is None and protocol.captions is None:
        problems.append("evaluation.protocol.clip: a CLIP score needs captions")
    if data.source == "dmd2-latents":
        if protocol.captions is None or protocol.reference.images is None:
            problems.append("evaluation.protocol: latents have no images; name `captions` and `reference.images`")
        if text is not None and isinstance(text.components, TinyComponents):
            problems.append("text.components: tiny ones are made of images; name those that the latents were made with")
    for name, variant in experiment.variants.items():
        if not captioned or not isinstance(variant, StudentVariant) or variant.students == 1:
            continue
        if not isinstance(variant.partition, Quadrants | TextKMeans | Hashed):
            problems.append(f"variants.{name}.partition: new prompts need a router: quadrants, text-kmeans or hash")
    return problems


def _guidance_problems(experiment: Experiment) -> list[str]:
    """A teacher of classes that never saw an image without one; a file says so itself when it is drawn from."""
    network = experiment.teacher.network if isinstance(experiment.teacher, TeacherTrainSource) else None
    if (
        experiment.evaluation.protocol.sampler.guidance == 1
        or not isinstance(network, Network)
        or network.label_dropout
    ):
        return []
    return [
        "evaluation.protocol.sampler.guidance: the teacher has no label_dropout, so there is nothing to guide away from"
    ]


def _recipes(experiment: Experiment) -> list[Recipe]:
    """Of all rows; those that are wrong are told of elsewhere."""
    recipes = [experiment.recipe]
    for variant in experiment.variants.values():
        if isinstance(variant, StudentVariant):
            with contextlib.suppress(ValidationError):
                recipes.append(experiment.recipe_of(variant))
    return recipes
