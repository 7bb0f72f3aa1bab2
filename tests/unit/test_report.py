"""The report: what it shows, in which order, and what it refuses to show."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fixtures import VARIANTS, experiment, make_results, refresh, rewrite

from msd.data import grid
from msd.errors import ConfigError, DamagedFileError, MissingFileError, MsdError
from msd.plan import Plan
from msd.report import columns, cost, page, partitions, pictures, summary, table
from msd.report.build import build_report
from msd.report.claims_page import Line
from msd.report.figures import draw_all
from msd.report.markup import inline
from msd.report.origins import origins
from msd.report.pdf import print_report
from msd.report.read import Report, read
from msd.report.readme import BEGIN, END, check_readme, readme_block, update_readme
from msd.report.sections import Content
from msd.report.show import show
from msd.report.style import Figure
from msd.store import Manifest, read_json, sha256_file

CSV_COLUMNS = [
    "variant",
    "students",
    "parameters_per_student",
    "nfe",
    "images_per_student",
    "images_total",
    "fd_digits",
    "precision",
    "recall",
    "asked_class_share",
    "latency_p50_ms",
    "training_seconds",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with their report, written once."""
    folder = tmp_path_factory.mktemp("results")
    build_report(make_results(folder))
    return folder


@pytest.fixture
def plan(made: Path, tmp_path: Path) -> Plan:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "results")
    return Plan(experiment(), results=tmp_path / "results")


@pytest.fixture
def built(made: Path) -> Plan:
    """The results and the report, to read only."""
    return Plan(experiment(), results=made)


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


def table_of(plan: Plan) -> list[list[str]]:
    with open(plan.root / "ablation.csv", encoding="utf-8", newline="") as f:
        return list(csv.reader(f))


def test_csv_has_the_variants_in_order_and_raw_numbers(built: Plan) -> None:
    heading, *rows = table_of(built)
    assert heading == CSV_COLUMNS
    assert [row[0] for row in rows] == list(VARIANTS)
    for row in rows:
        results = Manifest.read(built.variants[row[0]].evaluation.manifest).results
        assert row[4] == str(results["images_per_student"])
        assert float(row[6]) == results["metrics"]["fd_digits"]


def test_everything_promised_is_written_and_recorded(built: Plan) -> None:
    manifest = Manifest.read(built.report)
    assert manifest.body["kind"] == "report"
    names = set(manifest.body["files"])
    assert {"ablation.csv", "ablation.md", "metrics.json", "report.html", "figures/overview.png"} <= names
    assert {f"figures/gallery-{name}.png" for name in VARIANTS} <= names
    for name in names:
        manifest.file(name)
    recorded = {(built.root / record["path"]).resolve() for record in manifest.body["inputs"].values()}
    assert recorded == {path.resolve() for path in built.report_inputs}


def test_metrics_json_is_flat(built: Plan) -> None:
    metrics = read_json(built.root / "metrics.json")
    assert list(metrics) == list(VARIANTS)
    assert metrics["single"]["fd_digits"] == 28.12
    assert all(isinstance(value, int | float) for row in metrics.values() for value in row.values())


def test_building_twice_gives_the_same_files(plan: Plan) -> None:
    before = Manifest.read(plan.report).body["files"]
    stray = plan.root / "figures" / "gallery-of-a-variant-that-is-gone.png"
    stray.write_bytes(b"")
    assert build_report(plan).body["files"] == before
    assert not stray.exists()


def test_mixing_metrics_is_refused(plan: Plan) -> None:
    node = plan.variants["msd4"].evaluation
    metric = Manifest.read(node.manifest).results["metric"]
    for key, other in (
        ("protocol", "0" * 64),
        ("features_sha256", "0" * 64),
        ("judge_sha256", "0" * 64),
        ("images", 7),
        ("reference_images", 7),
    ):
        rewrite(node, metric=metric | {key: other})
        with pytest.raises(DamagedFileError, match=f"never mixes metrics(.|\n)*{key} is .* for msd4"):
            build_report(plan)


def test_a_floor_of_another_metric_is_refused_but_its_number_of_images_may_differ(plan: Plan) -> None:
    metric = Manifest.read(plan.floor.manifest).results["metric"]
    rewrite(plan.floor, metric=metric | {"features_sha256": "0" * 64})
    with pytest.raises(DamagedFileError, match="for the floor"):
        read(plan)
    rewrite(plan.floor, metric=metric | {"images": 500})
    assert "It rests on 500 images" in table.floor_note(read(plan).numbers)


def test_a_stale_manifest_is_named(plan: Plan) -> None:
    rewrite(plan.variants["single"].bundle, nfe=2)
    with pytest.raises(DamagedFileError) as e:
        build_report(plan)
    assert "stale" in str(e.value)
    assert "/single-" in str(e.value) or "latency" in str(e.value)
    assert str(plan.variants["single"].bundle.manifest) in str(e.value)


def test_a_missing_manifest_a_changed_journal_and_a_missing_result_are_refused(plan: Plan) -> None:
    stage = plan.variants["msd4"].students[2].stages[0]
    journal = Manifest.read(stage.manifest).file("journal")
    text = journal.read_text()
    journal.write_text(text + "{}\n")
    with pytest.raises(DamagedFileError, match=r"events\.jsonl"):
        read(plan)
    journal.write_text(text)
    node = plan.variants["single"].evaluation
    body = node.manifest.read_text()
    node.manifest.write_text(body.replace('"training_seconds"', '"seconds_of_training"'))
    with pytest.raises(DamagedFileError, match=r"no results\.training_seconds"):
        read(plan)
    node.manifest.unlink()
    with pytest.raises(MissingFileError, match=node.manifest.parent.name):
        read(plan)


def test_markdown_bolds_the_best_student_and_never_the_teacher(built: Plan) -> None:
    lines = table.markdown(read(built).numbers).splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]}
    at = CSV_COLUMNS.index
    assert rows["single-matched-compute"][at("fd_digits")] == "**22.4**"
    assert rows["single-matched-compute"][at("recall")].startswith("**")
    assert not any("**" in cell for cell in rows["teacher"])
    assert not any("**" in row[at("students")] for row in rows.values())
    # two rows that read the same are equally good
    assert rows["msd4-small"][at("latency_p50_ms")] == rows["single-small"][at("latency_p50_ms")] == "**2.3 ms**"
    assert rows["single"][at("parameters_per_student")] == "0.19 M"
    assert rows["single"][at("images_total")] == "19.2 k"
    assert "fd_digits@" in lines[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (columns.thousands(999), "999"),
        (columns.thousands(1234), "1.2 k"),
        (columns.thousands(64_000), "64 k"),
        (columns.thousands(999_999), "1 M"),
        (columns.millions(44_021), "0.044 M"),
        (columns.millions(295_900_000), "295.9 M"),
        (columns.duration(95.2), "95 s"),
        (columns.duration(750), "12.5 min"),
        (columns.duration(11_520), "3.2 h"),
        (columns.milliseconds(0.456), "0.46 ms"),
        (columns.milliseconds(1234.5), "1,234 ms"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_values_that_are_not_known_are_shown_as_such(plan: Plan) -> None:
    variant = plan.variants["teacher"]
    empty = {"images_per_student": None, "images_total": None, "training_seconds": None}
    rewrite(variant.evaluation, **empty)
    build_report(plan)
    row = dict(zip(*table_of(plan)[:2], strict=True))
    assert row["variant"] == "teacher"
    assert row["images_total"] == ""
    assert row["nfe"] == "35"
    assert "–" in (plan.root / "ablation.md").read_text().split("| teacher")[1].splitlines()[0]
    assert "training_seconds" not in read_json(plan.root / "metrics.json")["teacher"]


def test_notes_say_what_a_reader_must_know(built: Plan) -> None:
    numbers = read(built).numbers
    notes = "\n".join(table.notes(numbers))
    assert "fd_digits is not FID" in notes
    assert columns.metric_label(numbers["metric"]) in notes
    assert "2,000 images per row" in notes
    assert numbers["machines"]["latency"][0] in notes
    assert "†" not in notes
    numbers["machines"]["training"] = ["one", "another"]
    assert "times do not compare" in table.machine_note(numbers)


def test_rows_with_another_recipe_are_marked(tmp_path: Path) -> None:
    changed = {"students": 4, "recipe": {"dm": {"two_time_scale_ratio": 3}}}
    plan = make_results(tmp_path, experiment({"single": {"students": 1}, "msd4": changed}))
    numbers = read(plan).numbers
    assert "| msd4 †" in table.markdown(numbers)
    assert "| single " in table.markdown(numbers)
    assert table.change_notes(numbers)[0].startswith("† `msd4` changes the recipe: dm.two_time_scale_ratio = 3")
    assert summary.comparisons(numbers) == []  # more than the number of students differs


@pytest.mark.parametrize(
    ("msd4", "expected"),
    [
        (20.0, ["better than one (`single`", "better than one (`single-matched-compute`", "Best of these: `msd4`"]),
        (
            25.0,
            ["better than one (`single`", "worse than one (`single-matched-compute`", "Best of these: `single-matched"],
        ),
        (28.12, ["as good as one (`single`", "worse than one (`single-matched-compute`"]),
    ],
)
def test_the_summary_says_who_is_best_whoever_it_is(built: Plan, msd4: float, expected: list[str]) -> None:
    numbers = read(built).numbers
    numbers["rows"][2]["fd_digits"] = msd4
    text = summary.paragraph(numbers)
    for part in expected:
        assert part in text
    assert "`msd4` comes closest" in text or msd4 > 22
    assert "the floor" in text


def test_comparisons_pair_what_differs_in_students_alone(built: Plan) -> None:
    found = {(c.many["variant"], c.one["variant"], c.equal) for c in summary.comparisons(read(built).numbers)}
    assert found == {
        ("msd4", "single", "each"),
        ("msd4", "single-matched-compute", "in all"),
        ("msd4-equal-total", "single", "in all"),
        ("msd4-small", "single-small", "each"),
    }


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


def test_other_seeds_are_found_and_nothing_else(plan: Plan) -> None:
    assert all(row.replicates == [] for row in read(plan).rows)
    for seed in (1, 2):
        node = make_results(plan.root.parent, replicate=seed).variants["msd4"].evaluation
        rewrite(node, metrics=Manifest.read(node.manifest).results["metrics"] | {"fd_digits": 24.0 + seed})
    # another recipe under the same seed is another experiment
    changed = experiment({"msd4": {"students": 4, "images": 2}}).model_copy(update={"seed": 3})
    make_results(plan.root.parent, changed)
    report = read(plan)
    row = next(row for row in report.rows if row.name == "msd4")
    assert [(r.seed, r.distance) for r in row.replicates] == [(1, 25.0), (2, 26.0)]
    drawn = {figure.path.name: figure for figure in draw_all(report, plan.root / "figures")}
    assert "3 seeds" in drawn["quality-latency.png"].caption
    rewrite(node, metric=Manifest.read(node.manifest).results["metric"] | {"images": 7})
    with pytest.raises(DamagedFileError, match="for msd4, seed 2"):
        read(plan)


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


def content(plan: Plan, report: Report, figures: list[Figure], claims: Sequence[Line] = ()) -> Content:
    """What a page without breakdowns is made of."""
    return Content(report, figures, origins(report), [], cost.read(plan, report), list(claims))


def draw_without_files(report: Report, folder: Path) -> list:
    """The figures of a report whose variants no file may be named after."""
    return [
        pictures.overview(report, folder / "overview.png"),
        pictures.gallery(report.rows[1], folder / "gallery.png"),
    ]


def test_galleries_are_capped_and_say_so(tmp_path: Path) -> None:
    few = {"teacher": {"model": "teacher"}, "msd2": {"students": 2}}
    report = read(make_results(tmp_path, experiment(few), classes=30))
    figures = {figure.path.stem: figure for figure in draw_all(report, tmp_path)}
    assert "Shown: 20 of 30 classes" in figures["gallery-msd2"].caption
    assert "Shown: 20 of 30 classes" in figures["overview"].caption
    assert {"partition", "losses", "asked-class"} <= set(figures)
    assert grid.shown_classes(1000)[0] == 0
    assert grid.shown_classes(1000)[-1] == 999
    assert len(set(grid.shown_classes(1000))) == grid.MAX_CLASSES
    assert grid.shown_classes(2) == [0, 1]


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    teacher = make_results(tmp_path / "a", experiment({"teacher": {"model": "teacher"}}))
    assert {f.path.name for f in draw_all(read(teacher), tmp_path)}.isdisjoint(
        {"partition.png", "losses.png", "losses-tsm.png", "quality-compute.png"}
    )
    build_report(teacher)
    single = make_results(tmp_path / "b", experiment({"single": {"students": 1, "stages": ["dm"]}}), classes=2)
    build_report(single)
    assert "partition.png" not in {p.name for p in (single.root / "figures").iterdir()}


def test_gallery_pixels_are_enlarged_not_smoothed(built: Plan) -> None:
    images = np.load(Manifest.read(built.variants["msd4"].evaluation.manifest).file("gallery"))
    shown = np.asarray(Image.open(built.root / "figures" / "gallery-msd4.png").convert("L"))
    tile = shown[:56, -60:-4]  # the first class, the last column, beside the gap
    assert np.array_equal(tile, images[0, -1, 0].repeat(2, 0).repeat(2, 1))


def test_show_is_aligned_and_quick(built: Plan) -> None:
    text = show(built)
    lines = text.splitlines()
    body = lines[3 : 3 + len(VARIANTS)]
    assert [line.split()[0] for line in body] == list(VARIANTS)
    assert all(len(line) <= len(lines[2]) for line in lines[:2] + body)
    assert "22.4*" in text
    assert "Floor: 1.5" in text
    assert text.endswith("report.html")
    code = "import sys, msd.report.show; print({'pandas', 'matplotlib', 'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_show_refuses_a_report_of_other_settings_or_older_results(plan: Plan) -> None:
    other = Plan(experiment({"single": {"students": 1}}), results=plan.root.parent)
    with pytest.raises(DamagedFileError, match="other settings"):
        show(other)
    node = plan.variants["teacher"].evaluation
    rewrite(node, sampling_seconds=9.0)
    with pytest.raises(DamagedFileError, match="stale"):
        show(plan)
    plan.report.unlink()
    with pytest.raises(MissingFileError):
        show(plan)


def test_a_refreshed_chain_is_accepted_again(plan: Plan) -> None:
    variant = plan.variants["single"]
    rewrite(variant.bundle, nfe=1, extra=True)
    assert variant.breakdown
    for node in (variant.evaluation, variant.breakdown, plan.latency):
        refresh(node)
    assert build_report(plan)


def test_readme_block_goes_there_and_back(plan: Plan, tmp_path: Path) -> None:
    readme, picture = tmp_path / "README.md", tmp_path / "docs" / "images" / "overview.png"
    readme.write_text(f"# Title\n\n{BEGIN}\nstale block\n{END}\n\nafter\n")
    path = update_readme(plan, readme, picture)
    assert path == tmp_path / "docs" / "results-mnist.json"
    text = readme.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nafter\n")
    assert "stale block" not in text
    assert readme_block(plan) in text
    assert "](docs/images/overview.png)" in text
    assert picture.stat().st_size < 400_000
    sums = read_json(path)["manifests"]
    assert {
        f"evaluation/{v.evaluation.name}-{v.evaluation.digest}/manifest.json" for v in plan.variants.values()
    } <= set(sums)
    assert all(sha256[:8] in text for sha256 in sums.values())
    check_readme(readme, path)
    update_readme(plan, readme, picture)
    assert readme.read_text() == text
    readme.write_text(text.replace("28.1", "18.1"))
    with pytest.raises(DamagedFileError, match="not those of the numbers"):
        check_readme(readme, path)
    path.write_text(json.dumps(read_json(path)))
    readme.write_text(text)
    check_readme(readme, path)  # the form of the JSON does not matter


def test_a_readme_without_marks_is_refused_untouched(built: Plan, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(ConfigError, match="no place for results"):
        update_readme(built, readme, tmp_path / "overview.png")
    assert readme.read_text() == "# Title\n"
    assert not (tmp_path / "overview.png").exists()
    with pytest.raises(MissingFileError):
        update_readme(built, tmp_path / "none.md", tmp_path / "overview.png")


def test_a_large_overview_is_made_small(plan: Plan, tmp_path: Path) -> None:
    from msd.report.readme import MAX_BYTES, _small

    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.png")
    assert (tmp_path / "in.png").stat().st_size > MAX_BYTES
    _small(tmp_path / "in.png", tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size <= MAX_BYTES


@pytest.mark.parametrize(
    ("shape", "side"), [((3, 32, 32), 64), ((3, 64, 64), 64), ((1, 256, 256), 128), ((1, 8, 8), 64)]
)
def test_tiles_of_any_size_fit(shape: tuple[int, int, int], side: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    tile = pictures.tile_of(image, pictures.GALLERY_TILE)
    assert tile.size == (side, side)
    assert len(set(tile.getpixel((0, 0)))) == (3 if shape[0] == 3 else 1)


def test_many_variants_stand_in_bands(tmp_path: Path) -> None:
    many = {f"single-{k}": {"students": 1, "images": k} for k in range(1, 11)}
    report = read(make_results(tmp_path, experiment(many)))
    names = [figure.path.name for figure in draw_all(report, tmp_path)]
    assert {"overview.png", "losses.png", "gallery-single-10.png"} <= set(names)
    overview = Image.open(tmp_path / "overview.png")
    assert overview.width < 2000
    assert overview.height > 2 * 10 * 56


def test_partition_card_shows_each_part_and_what_is_confused_across(built: Plan) -> None:
    card, *others = partitions.cards(read(built))
    assert others == []  # all variants of four students share one partition
    assert card.variants == ["msd4", "msd4-equal-total", "msd4-small"]
    assert [part.classes for part in card.parts] == [3, 3, 2, 2]
    assert [list(part.shown) for part in card.parts] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    assert sum(part.images for part in card.parts) == 500
    # the fixture's judge takes 4 for 9, and each class for its neighbour
    assert card.pairs[0].classes == (4, 9)
    assert card.pairs[0].students == (2, 4)
    assert {pair.classes for pair in card.pairs[1:]} == {(2, 3), (5, 6), (7, 8), (0, 9)}
    assert card.crossing == pytest.approx((0.09 / 0.15, 1 - 16 / 90))
    shown = Image.open(io.BytesIO(card.parts[3].shown[9])).convert("L")
    data = np.load(built.data.manifest.parent / "train-images.npy")
    labels = np.load(built.data.manifest.parent / "train-labels.npy")
    tile = np.asarray(shown)[:, :56]
    assert np.array_equal(tile, data[labels == 9][0, 0].repeat(2, 0).repeat(2, 1))


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
