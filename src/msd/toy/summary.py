"""The map in words, from its JSON alone. Whatever the numbers say is said; nothing here knows who ought to win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def summary(value: Mapping[str, Any]) -> list[str]:
    """Markdown lines about ``docs/claims/toy2d.json``.

    Args:
        value: the file's content.
    """
    places, seeds = value["map"], len(value["seeds"])
    budgets = value["budgets"]
    wins = [p for p in places if p["ratio"] < 1 and not p["tie"]]
    losses = [p for p in places if p["ratio"] > 1 and not p["tie"]]
    lines = [
        f"**When do many students pay?** 2-D toy with an exact teacher; K of {_listed(value['students'])} students share "
        f"one training budget equally, {len(value['widths'])} widths by {len(budgets)} budgets "
        f"({_thousands(budgets[0])} to {_thousands(budgets[-1])} training images of all students), {seeds} seeds each. "
        "The measure is the mean ℓ1 distance to the teacher's ODE output for the same noise.",
        "",
        f"- Of {len(places)} places of the map, the best K > 1 is closer to the teacher than one student in "
        f"{len(wins)}, farther in {len(losses)}; in {len(places) - len(wins) - len(losses)} the 95 % interval of the "
        "ratio includes a tie.",
        *(_of_width(width, [p for p in places if p["width"] == width]) for width in value["widths"]),
    ]
    best = min(places, key=lambda p: p["ratio"])
    worst = max(places, key=lambda p: p["ratio"])
    lines += [
        f"- Extremes of ℓ1(best K > 1) / ℓ1(K = 1): {_ratio(best)} at {_place(best)} (K = {best['best_many']}), "
        f"{_ratio(worst)} at {_place(worst)} (K = {worst['best_many']}).",
        f"- Cost: {value['cpu_seconds'] / 60:.0f} CPU minutes on {value['machine']['cpu']}; `{value['command']}`, settings "
        f"`{value['settings_digest']}`.",
    ]
    return lines


def _of_width(width: int, places: Sequence[Mapping[str, Any]]) -> str:
    """What happens along the budgets of one width."""
    last = places[-1]
    winning = [p for p in places if p["ratio"] < 1 and not p["tie"]]
    if not winning:
        return f"- Width {width}: no K > 1 wins beyond a tie at any budget; at the largest the ratio is {_ratio(last)}."
    where = f"{_listed([_thousands(p['images_total']) for p in winning])} images"
    if len(winning) == len(places):
        where = "every budget"
    elif winning == list(places[-len(winning) :]):
        where = f"{_thousands(winning[0]['images_total'])} images and more"
    strongest = min(winning, key=lambda p: p["ratio"])
    return (
        f"- Width {width}: K > 1 wins at {where}; most at {_thousands(strongest['images_total'])}, "
        f"K = {strongest['best_many']}, ratio {_ratio(strongest)}."
    )


def _ratio(place: Mapping[str, Any]) -> str:
    low, high = place["ratio_interval"]
    return f"{place['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _place(place: Mapping[str, Any]) -> str:
    return f"width {place['width']}, {_thousands(place['images_total'])} images"


def _thousands(number: float) -> str:
    return f"{number / 1000:,.0f} k"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
