"""report.html: one file with everything in it, for a screen, a phone and paper. Needs no network and no script.

The page is a header and a list of sections (``sections.py``); it knows none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from msd.report import sections, summary
from msd.report.claims_page import Line
from msd.report.markup import fill
from msd.report.origins import Origins
from msd.report.read import Report
from msd.report.style import Figure


def render(report: Report, figures: Sequence[Figure], origins: Origins, claims: Sequence[Line] = ()) -> str:
    """The page as text.

    Args:
        report: the data.
        figures: as ``figures.draw_all`` gives them; each names its section.
        origins: of the table's numbers.
        claims: the first section; without any there is none.
    """
    content = sections.Content(report, list(figures), origins, list(claims))
    return fill(
        "report.html.j2",
        experiment=report.numbers["experiment"],
        paragraph=summary.paragraph(report.numbers),
        cards=sections.cards(content),
        sections=[section for make in sections.SECTIONS if (section := make(content))],
        origins=origins,
    )
