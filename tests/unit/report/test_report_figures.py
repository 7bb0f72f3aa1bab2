"""The report's pictures: which there are, how large, and of which pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fixtures import experiment, make_results

from msd.data import grid
from msd.plan import Plan
from msd.report import partitions, pictures
from msd.report.build import build_report
from msd.report.figures import draw_all
from msd.report.read import read
from msd.store import Manifest


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
