"""The report's page: self-contained, every number traced, nothing runs in it; and on paper."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from report_fixtures import VARIANTS
from report_table import CSV_COLUMNS

from msd.errors import MissingFileError, MsdError
from msd.plan import Plan
from msd.report import cost, page, pictures, table
from msd.report.claims_page import Line
from msd.report.markup import inline
from msd.report.origins import origins
from msd.report.pdf import print_report
from msd.report.read import Report, read
from msd.report.sections import Content
from msd.report.style import Figure
from msd.store import read_json, sha256_file


class Page(html.parser.HTMLParser):
    """Everything that a page would load or run, and its rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def content(plan: Plan, report: Report, figures: list[Figure], claims: Sequence[Line] = ()) -> Content:
    """What a page without breakdowns is made of."""
    return Content(report, figures, origins(report), [], cost.read(plan, report), list(claims))


def draw_without_files(report: Report, folder: Path) -> list:
    """The figures of a report whose variants no file may be named after."""
    return [
        pictures.overview(report, folder / "overview.png"),
        pictures.gallery(report.rows[1], folder / "gallery.png"),
    ]


def test_html_is_self_contained(built: Plan) -> None:
    text = (built.root / "report.html").read_text()
    found = Page(text)
    assert {inline(path) for path in (built.root / "figures").glob("*.png")} <= set(found.references)
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in found.references)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert not found.handlers
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "http://" not in text
    assert "https://" not in text
    for name in VARIANTS:
        assert name in text
    for path in built.report_inputs:
        assert path.relative_to(built.root).as_posix() in text
    ids = re.findall(r'popovertarget="([^"]+)"', text)
    assert len(ids) >= len(VARIANTS) * (len(CSV_COLUMNS) - 1)
    assert set(re.findall(r'popover class="origin" id="([^"]+)"', text)) == set(ids)


def test_every_number_of_the_table_leads_to_its_manifest(built: Plan) -> None:
    traced = origins(read(built), "--configfile x.yaml")
    assert sum(map(len, traced.cells)) == len(VARIANTS) * (len(CSV_COLUMNS) - 1)
    for origin in traced:
        path = built.root / Path(origin.manifest).relative_to("results/mnist")
        value = read_json(path)
        for name in origin.key.split("."):
            value = value[name]
        assert value == origin.value, origin.title
        assert origin.sha256 == sha256_file(path)
        assert origin.command == f"msd {read_json(path)['kind']} {origin.manifest} --configfile x.yaml"


def test_claims_come_first_or_not_at_all(built: Plan, tmp_path: Path) -> None:
    report = read(built)
    figures = draw_without_files(report, tmp_path)
    assert '<section id="claims"' not in page.render(content(built, report, figures))
    claim = Line("2b", "Four beat one.", "not reported", ["`msd4` 3 v. `single` 4", "and again"], "holds")
    text = page.render(content(built, report, figures, [claim]))
    assert "<code>msd4</code> 3 v. <code>single</code> 4<br>and again" in text
    sections = re.findall(r'<section id="([a-z]+)"', text)
    assert sections[:3] == ["claims", "glance", "table"]
    assert re.findall(r'<a href="#([a-z]+)"', text) == sections


def test_html_and_markdown_escape_odd_labels(built: Plan, tmp_path: Path) -> None:
    report = read(built)
    before = content(built, report, [])
    odd = "<script>alert(1)</script> | & `x`"
    report.rows[1].numbers["variant"] = odd  # the same dictionaries as in report.numbers
    report.numbers["machines"]["latency"] = ["<b>CPU</b>"]
    report.provenance["machine"] = "<img src=x onerror=alert(1)>"
    claim = Line("1", odd, "2.37 & 2.60", ["<b>20</b>"], "holds")
    drawn = draw_without_files(report, tmp_path)
    text = page.render(dataclasses.replace(before, figures=drawn, origins=origins(report), claims=[claim]))
    assert "script" not in Page(text).tags
    assert "b" in Page(text).tags
    assert "&lt;script&gt;" in text
    assert "<b>CPU" not in text
    assert "onerror=alert(1)&gt;" in text
    line = next(line for line in table.markdown(report.numbers).splitlines() if "alert" in line)
    assert "<script>" not in line
    assert line.replace("\\|", "").count("|") == len(CSV_COLUMNS) + 1


def test_pdf_needs_a_browser_and_a_report(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingFileError, match=r"Debian: apt install chromium(.|\n)*report\.html"):
        print_report(plan, tmp_path / "out.pdf")
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'no display' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(MsdError, match="no display"):
        print_report(plan, tmp_path / "out.pdf")
    plan.report.unlink()
    with pytest.raises(MissingFileError, match=r"report\.json"):
        print_report(plan, tmp_path / "out.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chromium", "results"]
