"""One subcommand per stage of the workflow. Each makes one manifest; run again, it resumes or finds it done."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from msd.cli.in_job import run_stage
from msd.cli.measure import add_measuring, measure, measures
from msd.cli.options import add_configuration, add_target, plan_of, target_of
from msd.cli.processes import add_processes, spread_over
from msd.cli.progress import ProgressDisplay
from msd.config import Compute, Data
from msd.plan import Node, Plan
from msd.store import Manifest


def _data(node: Node, plan: Plan) -> Manifest:
    from msd.data.prepare import prepare

    return prepare(Data.model_validate(node.settings), node.manifest, ProgressDisplay(node.label))


def _captions(node: Node, plan: Plan) -> Manifest:
    if node.settings.get("source") == "data":
        from msd.text.data_captions import collect_captions

        return collect_captions(node.manifest, node.settings, node.input_paths)
    from msd.text.captions import caption_images

    return caption_images(node.manifest, node.settings, node.input_paths)


def _autoencoder(node: Node, plan: Plan) -> Manifest:
    from msd.teachers.autoencoder import train_autoencoder

    return train_autoencoder(node, *_how(node, plan))


def _components(node: Node, plan: Plan) -> Manifest:
    from msd.teachers.components import make_components

    return make_components(node, plan.experiment.compute)


def _embeddings(node: Node, plan: Plan) -> Manifest:
    from msd.teachers.components import embed_captions

    return embed_captions(node, *_how(node, plan))


def _latents(node: Node, plan: Plan) -> Manifest:
    from msd.teachers.components import encode_latents

    return encode_latents(node, *_how(node, plan))


def _teacher(node: Node, plan: Plan) -> Manifest:
    if node.settings["source"] != "train":
        from msd.teachers.adopt import adopt_teacher

        return adopt_teacher(node, plan.experiment)
    from msd.teachers.train import train_teacher

    return train_teacher(node, *_how(node, plan))


def _classifier(node: Node, plan: Plan) -> Manifest:
    if node.settings["source"] != "train":
        from msd.weights import CLASSIFIER_FORMAT, adopt_weights

        return adopt_weights(node.manifest, node.kind, node.settings, CLASSIFIER_FORMAT)
    from msd.evaluate.judges import train_classifier

    return train_classifier(node, *_how(node, plan))


def _partition(node: Node, plan: Plan) -> Manifest:
    from msd.partition.build import build_partition

    if "embeddings" in node.inputs:
        from msd.partition.build_text import build_text_partition

        return build_text_partition(node.manifest, node.settings, node.input_paths)
    num_classes = Manifest.read(node.inputs["data"].manifest).results["num_classes"]
    embeddings = None
    if "teacher" in node.inputs:
        from msd.networks import load_network

        teacher = Manifest.read(node.inputs["teacher"].manifest)
        embeddings = load_network(teacher.file("weights")).condition_embeddings().numpy()
    return build_partition(node.manifest, node.settings, node.input_paths, num_classes, embeddings)


def _pairs(node: Node, plan: Plan) -> Manifest:
    from msd.distill.pairs import make_pairs

    return make_pairs(node, *_how(node, plan))


def _tsm(node: Node, plan: Plan) -> Manifest:
    from msd.distill.run import run_tsm

    return run_tsm(node, *_how(node, plan))


def _dm(node: Node, plan: Plan) -> Manifest:
    from msd.distill.run import run_dm

    return run_dm(node, *_how(node, plan))


def _adm(node: Node, plan: Plan) -> Manifest:
    from msd.distill.run import run_adm

    return run_adm(node, *_how(node, plan))


def _evaluate(node: Node, plan: Plan) -> Manifest:
    from msd.evaluate.run import evaluate

    return evaluate(node, plan.experiment.evaluation.gallery_columns, *_how(node, plan))


def _breakdown(node: Node, plan: Plan) -> Manifest:
    from msd.evaluate.breakdown import break_down

    return break_down(node, *_how(node, plan))


def _floor(node: Node, plan: Plan) -> Manifest:
    from msd.evaluate.run import evaluate_floor

    return evaluate_floor(node, plan.experiment.compute)


def _latency(node: Node, plan: Plan) -> Manifest:
    from msd.evaluate.latency import measure_latency

    return measure_latency(node, plan.experiment.compute)


def _how(node: Node, plan: Plan) -> tuple[Compute, ProgressDisplay]:
    return plan.experiment.compute, ProgressDisplay(node.label)


Stage = Callable[[Node, Plan], Manifest]
TRAINED = ("autoencoder", "teacher", "classifier", "tsm", "dm", "adm")
RESUMED = (*TRAINED, "pairs", "embeddings", "latents")
STAGES: dict[str, tuple[Stage, str, str]] = {
    "data": (_data, "load, check and split the images", "msd data"),
    "captions": (_captions, "prompts: captions of the images, and further ones", "msd captions"),
    "autoencoder": (_autoencoder, "train the small autoencoder of a miniature", "msd autoencoder"),
    "components": (_components, "autoencoder, tokenizer and text encoder: make or find them", "msd components"),
    "embeddings": (_embeddings, "hidden states and pooled vectors of all prompts", "msd embeddings"),
    "latents": (_latents, "latents of all training images", "msd latents"),
    "teacher": (_teacher, "fetch and verify the teacher, or train it (source: train)", "msd teacher"),
    "classifier": (
        _classifier,
        "fetch or train the feature network or the judge",
        "msd classifier results/mnist/networks/judge-<digest>/manifest.json",
    ),
    "partition": (_partition, "split the classes among the students", "msd partition --variant msd4"),
    "pairs": (_pairs, "draw (noise, teacher's sample) pairs for DM's regression loss", "msd pairs"),
    "tsm": (_tsm, "teacher score matching of a smaller network", "msd tsm --variant msd4-small"),
    "dm": (_dm, "distribution matching of one student", "msd dm --variant msd4 --student 2"),
    "adm": (_adm, "adversarial distribution matching of one student", "msd adm --variant msd4 --student 2"),
    "evaluate": (_evaluate, "draw a variant's images and score them", "msd evaluate --variant msd4"),
    "breakdown": (_breakdown, "score every student on every part and class", "msd breakdown --variant msd4"),
    "floor": (_floor, "score real images against real images", "msd floor"),
    "latency": (_latency, "time one image of every variant", "msd latency"),
}


def register(commands: Any) -> None:
    """Add the stages' subcommands."""
    for kind, (stage, summary, example) in STAGES.items():
        parser = commands.add_parser(
            kind,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. Run it again to resume or to find it done.",
            epilog=f"examples:\n  {example}\n  {example} --configfile experiments/smoke.yaml",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_target(parser)
        if kind == "evaluate":
            add_measuring(parser)
        if kind in TRAINED:
            parser.add_argument(
                "--max-kimg-this-run",
                type=float,
                metavar="N",
                help="save and end with 75 after N thousand images; the same command goes on",
            )
        if kind in (*TRAINED, "evaluate"):
            add_processes(parser)
        if kind == "data":
            parser.add_argument("--list", action="store_true", help="list the known sources and end")
        add_configuration(parser)
        parser.set_defaults(run=_runner(kind, stage))


def _runner(kind: str, stage: Stage) -> Callable[[argparse.Namespace], None]:
    def run(arguments: argparse.Namespace) -> None:
        if getattr(arguments, "list", False):
            from msd.data.sources import SOURCES

            print("\n".join(f"{name}: {source.description}" for name, source in SOURCES.items()))
            return
        if kind == "evaluate" and measures(arguments):
            measure(arguments)
            return
        if getattr(arguments, "max_kimg_this_run", None) is not None:
            arguments.config.append(f"compute.max_kimg_this_run={arguments.max_kimg_this_run}")
        plan = plan_of(arguments)
        node = target_of(arguments, plan, kind)
        spread_over(arguments)
        spare_seconds = plan.experiment.compute.spare_seconds
        resumed = kind in RESUMED
        manifest = run_stage(node, spare_seconds, lambda: stage(node, plan)) if resumed else stage(node, plan)
        print(f"{node.label}: {manifest.path}", flush=True)

    return run
