"""The toy in words, from its JSON alone. Whatever the numbers say is said; nothing here knows who ought to win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def summary(value: Mapping[str, Any]) -> list[str]:
    """Markdown lines about ``docs/claims/toy2d.json``.

    Args:
        value: the file's content.
    """
    places, seeds, budgets = value["map"], len(value["seeds"]), value["budgets"]
    wins = [p for p in places if _wins(p)]
    losses = [p for p in places if p["ratio"] > 1 and not p["tie"]]
    best, worst = (of(places, key=lambda p: p["ratio"]) for of in (min, max))
    return [
        "**When do many students pay?** In the 2-D toy the teacher is exact; the measure is the mean ℓ1 distance to "
        f"its ODE output for the same noise, over {seeds} seeds. K of {_listed(value['students'])} students share one "
        f"training budget equally: {len(value['widths'])} widths by {len(budgets)} budgets, {_images(budgets[0])} to "
        f"{_images(budgets[-1])} training images of all students together.",
        "",
        f"- Of {len(places)} places of the map, the best K > 1 is closer to the teacher than one student in "
        f"{len(wins)} and farther in {len(losses)}; in {len(places) - len(wins) - len(losses)} the 95 % interval of "
        "the ratio includes a tie.",
        *(_of_width(width, [p for p in places if p["width"] == width]) for width in value["widths"]),
        f"- Extremes of ℓ1(best K > 1) / ℓ1(K = 1): {_ratio(best)} at {_place(best)} (K = {best['best_many']}), "
        f"{_ratio(worst)} at {_place(worst)} (K = {worst['best_many']}).",
        *_equal_each(value.get("figure", [])),
        f"- Cost of the map: {value['cpu_seconds'] / 60:.0f} CPU minutes ({value['machine']['cpu']}, one thread). "
        f"`{value['command']}`, settings `{value['settings_digest']}`.",
    ]


def _wins(place: Mapping[str, Any]) -> bool:
    """Whether many students win beyond a tie."""
    return place["ratio"] < 1 and not place["tie"]


def _of_width(width: int, places: Sequence[Mapping[str, Any]]) -> str:
    """What happens along the budgets of one width."""
    winning = [p for p in places if _wins(p)]
    if not winning:
        return (
            f"- Width {width}: no K > 1 wins beyond a tie at any budget; "
            f"at the largest the ratio is {_ratio(places[-1])}, K = {places[-1]['best_many']}."
        )
    if len(winning) == len(places):
        where = "every budget"
    elif winning == places[-len(winning) :]:
        where = f"{_images(winning[0]['images_total'])} images and more"
    else:
        where = f"{_listed([_images(p['images_total']) for p in winning])} images"
    strongest = min(winning, key=lambda p: p["ratio"])
    return (
        f"- Width {width}: many students win at {where}; most at {_images(strongest['images_total'])}, "
        f"K = {strongest['best_many']}, ratio {_ratio(strongest)}."
    )


def _equal_each(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paper's own comparison: every student trained as long, so K students cost K times one."""
    if not rows:
        return []
    distances = ", ".join(f"{row['l1_mean']:.3f} (K = {row['students']})" for row in rows)
    return [
        f"- At equal training of each student, so at K times the compute (width {rows[0]['width']}, "
        f"{_images(rows[0]['images_each'])} images each): ℓ1 {distances}."
    ]


def _ratio(place: Mapping[str, Any]) -> str:
    low, high = place["ratio_interval"]
    return f"{place['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _place(place: Mapping[str, Any]) -> str:
    return f"width {place['width']}, {_images(place['images_total'])} images"


def _images(number: float) -> str:
    return f"{number / 1e6:.1f} M" if number >= 999_500 else f"{number / 1000:.0f} k"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
