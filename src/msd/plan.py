"""The static DAG: every piece of work of an experiment, where it goes and what it needs, known before anything runs.

A node's path carries a short digest of the resolved settings that make it, and of the nodes before it. So a changed
setting is a new path, nothing stale can be taken for new, and a setting changed back is found again. Variants that
need the same student name the same node. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from msd.config import (
    TEACHER,
    TEXT_PARTITIONS,
    Experiment,
    Section,
    StudentVariant,
    TeacherVariant,
    Text,
    TinyComponents,
    WeightsVariant,
)
from msd.errors import ConfigError
from msd.nodes import Node, StudentPlan, TextPlan, VariantPlan

__all__ = ["Node", "Plan", "StudentPlan", "VariantPlan"]
RESULTS = Path("results")


class Plan:
    """All nodes of an experiment.

    Args:
        experiment: the resolved configuration.
        results: the folder that holds all experiments' results.
        replicate: which repetition; it moves the seeds of the students' training and of the partition. Data, teacher,
            classifiers, regression pairs and the noise of the evaluation are those of all replicates.

    Attributes:
        replicates: the plan itself, and one more for each further seed that a claim asks for.
    """

    def __init__(self, experiment: Experiment, results: Path = RESULTS, replicate: int = 0) -> None:
        self.experiment = experiment
        self.seed = experiment.seed + replicate
        self.root = results / experiment.experiment
        self.data = self._node("data", "data", experiment.data.source, _dump(experiment.data), {}, "data")
        self.text = self._text(experiment.text) if experiment.text else None
        self.teacher = self._sourced("teacher", "teacher", experiment.teacher, self.trained_on)
        protocol = experiment.evaluation.protocol
        images = {"data": self.data}
        self.features = self._sourced("classifier", "features", protocol.features, images)
        self.second = (
            self._sourced("classifier", "second-features", protocol.second.features, images)
            if protocol.second
            else None
        )
        judge = experiment.evaluation.judge
        self.judge = self._sourced("classifier", "judge", judge, images) if judge else None
        self.variants = {name: self._variant(name) for name in experiment.variants}
        measure = {"protocol": _dump(protocol)}
        self.floor = self._node("floor", "evaluation", "real-data", measure, self._judges(), "metric floor")
        self.latency = self._node(
            "latency",
            "evaluation",
            "latency",
            {
                "repeats": experiment.evaluation.latency_repeats,
                "throughput_batch": experiment.evaluation.throughput_batch,
            },
            {name: v.bundle for name, v in self.variants.items()},
            "latency",
        )
        self.toy = self._toy("toy", "figure", {"map"})
        self.toy_map = self._toy("toy-map", "map", set())
        self._by_path = {node.manifest: node for node in self._walk()}
        further = range(1, max((claim.seeds for claim in experiment.claims), default=1)) if replicate == 0 else ()
        self.replicates = [self, *(Plan(experiment, results, r) for r in further)]
        self._ahead: dict[Path, int] = {}

    @property
    def report(self) -> Path:
        """The report's manifest; its fixed-name files (ablation.csv, report.html, …) lie beside it."""
        return self.root / "report.json"

    @property
    def claims(self) -> Path:
        """Proof that the claims are put to the test, and where."""
        return self.root / "claims.json"

    @property
    def claim_inputs(self) -> list[Path]:
        """Every manifest that the claims are judged by."""
        names = dict.fromkeys(name for claim in self.experiment.claims for name in claim.variants)
        return [self.latency.manifest] + [node.manifest for name in names for node in self.claimed(name)]

    @property
    def toy_cells(self) -> Path:
        """Folder of the toy's finished cells, undeclared; all experiments share it."""
        return self.root.parent / "toy2d"

    @property
    def tracking(self) -> Path:
        """Proof that the runs are in MLflow."""
        return self.root / "tracking.json"

    @property
    def report_inputs(self) -> list[Path]:
        """Every manifest that the report reads."""
        return sorted(self._by_path)

    @property
    def student_manifests(self) -> list[Path]:
        """The last stage of every student of every variant, each once."""
        return sorted({s.last.manifest for v in self.variants.values() for s in v.students})

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_path.values())

    def images_ahead(self, node: Node) -> int:
        """Images to draw or train on from a node to the end of the longest chain that it begins.

        A scheduler that starts the longest first leaves no long chain to run alone at the end.
        """
        if node.manifest not in self._ahead:
            own = node.images or node.settings.get("pairs", 0)
            after = [self.images_ahead(n) for n in self._consumers[node.manifest]]
            self._ahead[node.manifest] = own + max(after, default=0)
        return self._ahead[node.manifest]

    @cached_property
    def _consumers(self) -> dict[Path, list[Node]]:
        """Manifest → the nodes that read it."""
        nodes = {path: node for plan in self.replicates for path, node in plan._by_path.items()}
        consumers: dict[Path, list[Node]] = {path: [] for path in nodes}
        for node in nodes.values():
            for path in node.input_paths.values():
                consumers[path].append(node)
        return consumers

    def find(self, manifest: Path | str) -> Node:
        """The node that makes a manifest.

        Raises:
            ConfigError: no node of this experiment makes it.
        """
        for plan in self.replicates:
            if (node := plan._by_path.get(Path(manifest))) is not None:
                return node
        raise ConfigError(
            "This configuration makes no such file.",
            where=str(manifest),
            why="paths carry a digest of the settings; these settings give other paths",
            todo="Give the same --configfile and --config as for the run, or see `snakemake -n all`.",
        )

    def student_node(self, variant: str, student: int, kind: str) -> Node:
        """The node of one stage of student number ``student`` (from 0) of a variant.

        Raises:
            ConfigError: there is none.
        """
        students = self.variant(variant).students
        if not 0 <= student < len(students):
            raise ConfigError(f"Variant {variant!r} has no student {student}.", why=f"it has {len(students)}, from 0")
        for node in students[student].stages:
            if node.kind == kind:
                return node
        raise ConfigError(f"Student {student} of variant {variant!r} has no stage {kind!r}.")

    def claimed(self, variant: str) -> list[Node]:
        """The evaluations of a variant that the claims need, one for each seed; one for a variant without a seed."""
        seeds = max(claim.seeds for claim in self.experiment.claims if variant in claim.variants)
        nodes = [plan.variants[variant].evaluation for plan in self.replicates[:seeds]]
        return list({node.manifest: node for node in nodes}.values())

    def variant(self, name: str) -> VariantPlan:
        """A variant by its name.

        Raises:
            ConfigError: there is none of this name.
        """
        try:
            return self.variants[name]
        except KeyError:
            raise ConfigError(
                f"There is no variant {name!r}.", todo=f"Choose from {', '.join(self.variants)}."
            ) from None

    def _walk(self) -> Iterator[Node]:
        pending = [v.evaluation for v in self.variants.values()] + [self.teacher, self.floor, self.latency]
        pending += [v.breakdown for v in self.variants.values() if v.breakdown]
        pending += [self.toy] if self.toy else []
        while pending:
            node = pending.pop()
            yield node
            pending += node.inputs.values()

    @property
    def _which_seed(self) -> str:
        """For labels: which replicate, if it is not the first."""
        return "" if self.seed == self.experiment.seed else f", seed {self.seed}"

    def _node(
        self, kind: str, group: str, name: str, settings: dict[str, Any], inputs: dict[str, Node], label: str
    ) -> Node:
        return Node(kind, group, name, settings, inputs, self.root, label)

    def _sourced(self, kind: str, name: str, source: Section, data: dict[str, Node]) -> Node:
        """A network that is fetched, or trained on the data; one of text is fetched with what is around it."""
        settings = {"role": name, **_dump(source)}
        trained = settings["source"] == "train"
        if trained:
            settings["seed"] = self.experiment.seed
            settings |= {"prompt_dropout": self.text.dropout} if self.text and kind == "teacher" else {}
        return self._node(kind, "networks", name, settings, data if trained else {}, name)

    def _text(self, text: Text) -> TextPlan:
        """Captions, the frozen parts around the denoiser, and what they make of captions and images."""
        captions = self._node("captions", "data", "captions", _dump(text.captions), {"data": self.data}, "captions")
        inputs: dict[str, Node] = {}
        if isinstance(text.components, TinyComponents):
            inputs["captions"] = captions
            settings, name = _dump(text.components.autoencoder), "autoencoder"
            inputs[name] = self._node(name, "networks", name, settings, {"data": self.data}, name)
        settings = _dump(text.components, exclude={"autoencoder"})
        settings |= _dump(text, include={"tiny_decoder"}) if text.tiny_decoder else {}
        around = self._node("components", "networks", "components", settings, inputs, "components")
        made = {"captions": captions, "components": around}
        pooling = {"pooling": text.pooling}
        embeddings = self._node("embeddings", "data", "embeddings", pooling, made, "embeddings")
        latents = self._node("latents", "data", "latents", {}, made, "latents")
        return TextPlan(captions, around, embeddings, latents, text.prompt_dropout)

    def _toy(self, kind: str, name: str, without: set[str]) -> Node | None:
        """What the 2-D toy makes; the map is a target of its own, no part of the report."""
        toy = self.experiment.toy
        if toy is None or (kind == "toy-map" and toy.map is None):
            return None
        return self._node(kind, "toy", name, _dump(toy, exclude=without), {}, f"toy {name}")

    @property
    def trained_on(self) -> dict[str, Node]:
        """What teacher and students see: images with classes, or latents with the states of their captions."""
        return {"data": self.text.latents, "embeddings": self.text.embeddings} if self.text else {"data": self.data}

    @property
    def measured_on(self) -> Node:
        """The real images, labelled by their conditions where those have classes."""
        return self.text.captions if self.text and self.judge else self.data

    @property
    def networks(self) -> dict[str, Node]:
        """Role → the teacher, and the networks that measure."""
        second = {"second-features": self.second} if self.second else {}
        judge = {"judge": self.judge} if self.judge else {}
        return {"teacher": self.teacher, "features": self.features, **second, **judge}

    def _judges(self) -> dict[str, Node]:
        return {"data": self.measured_on} | {r: node for r, node in self.networks.items() if r != "teacher"}

    def _variant(self, name: str) -> VariantPlan:
        variant = self.experiment.variants[name]
        inputs: dict[str, Node] = {"teacher": self.teacher}
        settings: dict[str, Any] = {"model": variant.model}
        partition, students = None, []
        protocol = self.experiment.evaluation.protocol
        if isinstance(variant, TeacherVariant):
            settings["sampler"] = _dump(protocol.sampler)
        elif isinstance(variant, WeightsVariant):
            settings, inputs = _dump(variant), {}
        else:
            partition = self._partition(variant)
            students = [self._student(name, variant, partition, k) for k in range(variant.students)]
            inputs = {"partition": partition} | {f"student-{k}": s.last for k, s in enumerate(students)}
            settings |= {} if protocol.ema is None else {"ema": protocol.ema}
        if self.text:
            inputs |= {"components": self.text.components, "captions": self.measured_on}
            settings |= {**self.text.embeddings.settings, **self._asked()}
        bundle = self._node("bundle", "bundles", name, settings, inputs, f"{name} bundle{self._which_seed}")
        evaluation = self._node(
            "evaluate",
            "evaluation",
            name,
            _dump(self.experiment.evaluation, exclude={"judge", "latency_repeats", "throughput_batch", "breakdown"}),
            {"bundle": bundle, **self._judges()},
            f"{name} evaluation{self._which_seed}",
        )
        whole = self.judge is None or isinstance(variant, TeacherVariant)
        breakdown = None if whole else self._breakdown(name, bundle)
        return VariantPlan(name, partition, students, bundle, evaluation, breakdown)

    def _asked(self) -> dict[str, Any]:
        """Which prompts students are measured with, where those of the training are not: one for each image."""
        protocol = self.experiment.evaluation.protocol
        if self.judge is not None:
            return {}
        captions = {} if protocol.captions is None else {"captions": _dump(protocol.captions)}
        return {**captions, "prompts": protocol.images * protocol.blocks}

    def _breakdown(self, name: str, bundle: Node) -> Node:
        evaluation = self.experiment.evaluation
        settings = {
            "protocol": _dump(evaluation.protocol),
            "batch_size": evaluation.batch_size,
            **_dump(evaluation.breakdown),
            "images": evaluation.breakdown.images or evaluation.protocol.images,
        }
        inputs = {"bundle": bundle, **self._judges()}
        return self._node("breakdown", "evaluation/breakdown", name, settings, inputs, f"{name} breakdown")

    def _partition(self, variant: StudentVariant) -> Node:
        spec = _dump(variant.partition)
        if "seed" in spec:
            spec["seed"] += self.seed - self.experiment.seed
        inputs = {"data": self.text.captions if self.text else self.data}
        if spec["kind"] == "kmeans":
            inputs["teacher"] = self.teacher
        if spec["kind"] in TEXT_PARTITIONS:
            assert self.text is not None  # the configuration sees to it
            inputs["embeddings"] = self.text.embeddings
        name = f"{spec['kind']}-{variant.students}"
        return self._node("partition", "partition", name, {"students": variant.students, **spec}, inputs, name)

    def _student(self, name: str, variant: StudentVariant, partition: Node, part: int) -> StudentPlan:
        experiment, recipe = self.experiment, self.experiment.recipe_of(variant)
        network = None if variant.network == TEACHER else _dump(experiment.networks[variant.network])
        common = {"seed": self.seed, "network": network}
        stages: list[Node] = []
        if network is not None:
            settings = {**common, "recipe": _dump(recipe.tsm)}
            inputs = {**self.trained_on, "teacher": self.teacher}
            stages.append(
                self._node("tsm", "train", "tsm", settings, inputs, f"{variant.network} tsm{self._which_seed}")
            )
        for stage in variant.stages:
            section = getattr(recipe, stage)
            section = section.model_copy(update={"images": round(section.images * variant.images)})
            inputs = {**self.trained_on, "teacher": self.teacher, "partition": partition}
            if section.regression is not None:
                inputs["pairs"] = self._pairs(section.regression)
            if stages:
                inputs["before"] = stages[-1]
            settings = {**common, "part": part, "recipe": _dump(section)}
            label = f"{name} {stage} student {part + 1}/{variant.students}{self._which_seed}"
            stages.append(self._node(stage, "train", stage, settings, inputs, label))
        return StudentPlan(stages)

    def _pairs(self, regression: Section) -> Node:
        settings = {
            "seed": self.experiment.seed,
            **_dump(regression, exclude={"weight", "batch_size", "metric", "filtered"}),
        }
        return self._node("pairs", "pairs", "pairs", settings, {"teacher": self.teacher}, "regression pairs")


def _dump(section: Section, include: set[str] | None = None, exclude: set[str] | None = None) -> dict[str, Any]:
    return section.model_dump(mode="json", include=include, exclude=exclude)
