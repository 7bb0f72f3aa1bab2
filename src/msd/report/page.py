"""report.html: one file with everything in it, for a screen, a phone and paper. Needs no network and no script.

The page is a header and a list of sections (``sections.py``); it knows none of them.
"""

from __future__ import annotations

from msd.report import sections, summary
from msd.report.markup import fill


def render(content: sections.Content) -> str:
    """The page as text."""
    numbers = content.report.numbers
    return fill(
        "report.html.j2",
        experiment=numbers["experiment"],
        paragraph=summary.paragraph(numbers),
        cards=sections.cards(content),
        sections=[section for make in sections.SECTIONS if (section := make(content))],
        origins=content.origins,
    )
