"""What a person opens, in a real browser: report.html from disk, and plain `mlflow ui` in the root."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow_server import serving
from working_copy import WorkingCopy

from msd.store import read_json

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1400,1000"
)


@pytest.fixture(scope="module")
def whole(copy: WorkingCopy) -> WorkingCopy:
    """An experiment of two variants whose curves have forty points."""
    recipe = {"dm": {"images": 640, "batch_size": 16, "regression": None}}
    variants = {"single": {"students": 1, "stages": ["dm"]}, "msd2": {"students": 2, "stages": ["dm"]}}
    copy.run("all", configfile=copy.overlay("compare", {"recipe": recipe, "variants": variants}))
    return copy


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def test_report_opens_from_disk(whole: WorkingCopy, browser: webdriver.Chrome) -> None:
    browser.get(f"file://{whole.results('compare') / 'report.html'}")
    assert "compare" in browser.page_source
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) >= 3
    assert all(widths)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    browser.set_window_size(420, 900)
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 1, "a narrow window has to scroll sideways"


@pytest.fixture(scope="module")
def mlflow_ui(whole: WorkingCopy) -> Iterator[str]:
    """The address of the experiment's pages."""
    with serving(whole.folder, environment=whole.environment()) as server:
        yield f"{server.url}/#"


def runs_of(whole: WorkingCopy) -> tuple[str, dict[str, str]]:
    """The experiment's id, and name → id of each variant's run."""
    results = read_json(whole.results("compare") / "tracking.json")["results"]
    return results["experiment_id"], {name: ids[name] for name, ids in results["runs"].items()}


def test_mlflow_lists_the_runs(whole: WorkingCopy, mlflow_ui: str, browser: webdriver.Chrome) -> None:
    browser.get(f"{mlflow_ui}/experiments/{runs_of(whole)[0]}/runs")
    for name in ("single", "msd2"):
        _wait(browser, f"return document.body.innerText.split('\\n').some(line => line.trim() == '{name}')")


def test_mlflow_shows_the_curves_of_two_variants_in_one_chart(
    whole: WorkingCopy, mlflow_ui: str, browser: webdriver.Chrome
) -> None:
    browser.get(f"{mlflow_ui}/experiments/{runs_of(whole)[0]}/runs?compareRunsMode=CHART")
    _wait(browser, "return document.body.innerText.includes('asked_class_share_of/0')")
    browser.execute_script(
        "document.querySelectorAll('button[aria-label=Close]').forEach(button => button.click());"  # its assistant
        "[...document.querySelectorAll('*')].find(e => !e.children.length && e.innerText == 'dm').scrollIntoView()"
    )
    for name in ("single", "msd2"):
        _wait(browser, f"return document.body.innerText.includes('{name} (dm/dm_loss)')")
    points = "[...document.querySelectorAll('.scatterlayer .trace')].map(t => t.querySelectorAll('.point').length)"
    _wait(browser, f"return {points}.filter(n => n == 40).length >= 2")
    picture = os.environ.get("SCREENSHOT")
    if picture:
        time.sleep(3)  # the charts settle
        browser.save_screenshot(picture)


def test_mlflow_compares_two_variants_side_by_side(
    whole: WorkingCopy, mlflow_ui: str, browser: webdriver.Chrome
) -> None:
    experiment, runs = runs_of(whole)
    chosen = quote(json.dumps(list(runs.values())))
    browser.get(f"{mlflow_ui}/compare-runs?runs={chosen}&experiments={quote(json.dumps([experiment]))}")
    _wait(browser, "return document.body.innerText.includes('dm/dm_loss')")
    text = browser.execute_script("return document.body.innerText")
    lines = text[text.rindex("\nMetrics\n") : text.rindex("\nArtifacts\n")].split("\n")[3:]
    names = [line for line in lines if not line[:1].isdigit()]
    values = [float(line.replace(",", "")) for line in lines[len(names) :]]  # of each name, run after run
    stored = [MlflowClient(f"sqlite:///{whole.folder}/mlflow.db").get_run(run).data.metrics for run in runs.values()]
    for name in ("asked_class_share", "dm/dm_loss"):
        i = 2 * names.index(name)
        assert values[i : i + 2] == [pytest.approx(metrics[name], abs=5e-4) for metrics in stored]


def test_mlflow_opens_a_picture(whole: WorkingCopy, mlflow_ui: str, browser: webdriver.Chrome) -> None:
    experiment, runs = runs_of(whole)
    browser.get(f"{mlflow_ui}/experiments/{experiment}/runs/{runs['msd2']}/artifacts/overview.png")
    _wait(browser, "return [...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth > 100)")


def test_mlflow_has_the_system_metrics_on_their_page(
    whole: WorkingCopy, mlflow_ui: str, browser: webdriver.Chrome
) -> None:
    experiment, _ = runs_of(whole)
    runs = read_json(whole.results("compare") / "tracking.json")["results"]["runs"]["single"]
    browser.get(f"{mlflow_ui}/experiments/{experiment}/runs/{runs['single dm student-0']}/system-metrics")
    _wait(browser, "return document.body.innerText.includes('(system/images_per_second)')")


def _wait(browser: webdriver.Chrome, script: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if browser.execute_script(script):
            return
        time.sleep(0.5)
    raise AssertionError(
        f"nothing came of: {script}\n{browser.execute_script('return document.body.innerText')[:2000]}"
    )
