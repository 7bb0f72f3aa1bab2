"""The ablation table: ablation.csv, its Markdown, the notes under it, and metrics.json for DVC."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from msd.report import columns, summary


def frame(numbers: Mapping[str, Any]) -> pd.DataFrame:
    """The table as numbers, one row per variant in the order of params.yaml."""
    table = pd.DataFrame({"variant": [row["variant"] for row in numbers["rows"]]})
    for column in columns.columns(numbers["metric"]):
        values = [row[column.key] for row in numbers["rows"]]
        table[column.key] = pd.array(values, dtype="Int64" if column.whole else "Float64")
    return table


def csv(numbers: Mapping[str, Any]) -> str:
    """ablation.csv: raw numbers, an empty field where one is not known."""
    return frame(numbers).to_csv(index=False, lineterminator="\n")


def metrics(numbers: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{variant: {metric: value}}, what is not known left out."""
    keys = [c.key for c in columns.columns(numbers["metric"]) if c.better]
    return {r["variant"]: {key: r[key] for key in keys if r[key] is not None} for r in numbers["rows"]}


def markdown(numbers: Mapping[str, Any]) -> str:
    """The table for people, the best student of each column in bold."""
    heading = ["variant", *(column.heading for column in columns.columns(numbers["metric"]))]
    lines = [heading, [":--", *["--:"] * (len(heading) - 1)]]
    for row, line in zip(numbers["rows"], columns.cells(numbers["rows"], numbers["metric"]), strict=True):
        name = _escape(row["variant"]) + " †" * bool(row["changes"])
        lines.append([name, *(f"**{cell.text}**" if cell.best else cell.text for cell in line)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def explained(numbers: Mapping[str, Any]) -> str:
    """The table in Markdown between a summary and what one must know to read it."""
    below = "\n".join(f"- {_escape(note)}" for note in notes(numbers))
    return "\n\n".join([_escape(summary.paragraph(numbers)), markdown(numbers), below])


def notes(numbers: Mapping[str, Any]) -> list[str]:
    """What stands under the table, the floor first. Backticks mark names."""
    metric = numbers["metric"]
    return [
        floor_note(numbers),
        metric_note(metric, summary.FLOORS[numbers["floor"].get("of", summary.OF_TRAINING)][2]),
        "Precision: share of the images that lie among real ones; recall: share of the real ones that lie among the "
        f"images{fit_note(metric)}. NFE: network evaluations per image.",
        "Images each and in all: training images over all stages, per student and of all students, a stage that "
        "students share once; for the teacher, those of its own training. Training: time summed over the students, as "
        "if one after another.",
        machine_note(numbers),
        "Bold: the best student of the column; the teacher does not compete. "
        "Each row is one training run with one seed, so small differences may be chance.",
        *control_notes(numbers),
        *change_notes(numbers),
    ]


def control_notes(numbers: Mapping[str, Any]) -> list[str]:
    """Of text to image: whether prompts matter, by the control with shuffled ones."""
    known = {row["variant"]: row.get("shuffled_prompts_share") for row in numbers["rows"]}
    shares = [f"`{name}` {columns.percent(share)}" for name, share in known.items() if share is not None]
    return [f"Control, the same images judged by the prompts of other classes: {', '.join(shares)}."] if shares else []


def fit_note(metric: Mapping[str, Any]) -> str:
    """How the table says whether images show what they were asked for."""
    judged = "; asked class: share of the images that a second classifier takes for the class they were asked for"
    clip = f"; CLIP: mean cosine of images and their prompts by {metric.get('clip')}, times 100"
    return judged * bool(metric["judge_sha256"]) + clip * bool(metric.get("clip"))


def metric_note(metric: Mapping[str, Any], real: str = "held-out real images") -> str:
    """What the distance is and what it compares with.

    Args:
        real: what that is called.
    """
    label, images = columns.metric_label(metric), f"{metric['images']:,} images"
    if metric["name"].startswith("fid_"):
        return (
            f"`{label}` is FID: the Fréchet distance of {images} per row and seed block, in the features of "
            f"Inception-v3 with the weights of 2015, measured by the protocol {metric['protocol'][:8]}. Numbers "
            "compare only with those of the same protocol. Where no other feature space stands beside it, none was "
            "measured."
        )
    each = ", the same number of each class," if metric["judge_sha256"] else ""
    return (
        f"`{label}` is the Fréchet distance of {images} per row{each} to "
        f"{metric['reference_images']:,} {real.removeprefix('the ')}, in the features of a small classifier named by "
        f"its sha256. {metric['name']} is not FID, which needs Inception-v3: it compares only with numbers of the same "
        "name and digest."
    )


def floor_note(numbers: Mapping[str, Any]) -> str:
    """The floor in one line."""
    metric, floor = numbers["metric"], numbers["floor"]
    values = floor["metrics"]
    of, against, _ = summary.FLOORS[floor.get("of", summary.OF_TRAINING)]
    text = (
        f"Floor: {summary.distance_text(values[metric['name']], numbers)}. {of}, scored in the same way against "
        f"{against} (precision {values['precision']:.3f}, recall {values['recall']:.3f}): no generator can be expected "
        "to come below."
    )
    if metric["judge_sha256"]:
        share = columns.percent(values["asked_class_share"])
        text += f" The classifier that judges the asked class is right about {share} of the held-out images."
    if floor["images"] != metric["images"]:
        text += f" It rests on {floor['images']:,} images; fewer images raise a Fréchet distance."
    return text


def machine_note(numbers: Mapping[str, Any]) -> str:
    """Where latency and training time were measured; several machines are named as a warning."""
    latency, machines = numbers["latency"], numbers["machines"]
    threads = f", {latency['threads']} thread{'s' * (latency['threads'] != 1)}" if latency["device"] == "cpu" else ""
    text = (
        f"Latency: median time of one image (batch {latency['batch_size']}, {latency['repeats']} repeats, "
        f"{latency['device']}{threads}) on {'; '.join(machines['latency'])}."
    )
    training = machines["training"]
    if len(training) > 1:
        text += f" Training ran on several machines, so its times do not compare: {'; '.join(training)}."
    elif training and training != machines["latency"]:
        text += f" Training ran on {training[0]}."
    return text


def change_notes(numbers: Mapping[str, Any]) -> list[str]:
    """One note for each row whose recipe is not that of the others."""
    return [
        f"† `{row['variant']}` changes the recipe: "
        + ", ".join(f"{key} = {value}" for key, value in row["changes"].items())
        + ". Its row differs from the others in more than its students."
        for row in numbers["rows"]
        if row["changes"]
    ]


def _escape(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
