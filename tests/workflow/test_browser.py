"""What a person opens, in a real browser: report.html from disk, and plain `mlflow ui` in the root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow_server import serving
from working_copy import COMMANDS, WorkingCopy

from msd.store import read_json, sha256_file

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
    claims = [
        {"number": number, "claim": "Two beat one. " * 9, "paper": "2.49 against 2.60", "expected": pairs, "seeds": 1}
        for number, pairs in (("1", [["msd2", "single"]]), ("2b", [["msd2", "single"], ["single", "msd2"]]))
    ]
    overlay = copy.overlay("compare", {"recipe": recipe, "variants": variants, "claims": claims})
    copy.run("claims", configfile=overlay)
    copy.run("all", configfile=overlay)
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


@pytest.fixture(scope="module")
def page(whole: WorkingCopy) -> str:
    """The address of the report on disk, with claims, which make its longest section."""
    return f"file://{whole.results('compare') / 'report.html'}"


def msd(whole: WorkingCopy, *arguments: str) -> None:
    command = [str(COMMANDS / "msd"), *arguments, "--configfile", "experiments/compare.yaml"]
    subprocess.run(command, cwd=whole.folder, env=whole.environment(), check=True, capture_output=True)


def open_at(browser: webdriver.Chrome, page: str, width: int) -> None:
    """A window may not be narrower than 500 pixels, a device may."""
    device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    browser.get(page)
    assert browser.execute_script("return window.innerWidth") == width
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.mark.parametrize("width", [1400, 390])
def test_report_fits_a_wide_and_a_narrow_window(page: str, browser: webdriver.Chrome, width: int) -> None:
    """Nothing sticks out; what is wider scrolls in its own box; every picture is there and large enough to read."""
    open_at(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """
        return [...document.body.querySelectorAll('*')]
          .filter(e => e.getClientRects().length && !e.closest('.scroll > *'))
          .filter(e => { const r = e.getBoundingClientRect(); return r.right > innerWidth + 1 || r.left < -1; })
          .map(e => e.outerHTML.slice(0, 100));
    """
    assert browser.execute_script(outside) == []
    clipped = (
        "return [...document.querySelectorAll('.scroll')].filter(e => getComputedStyle(e).overflowX != 'auto').length"
    )
    assert browser.execute_script(clipped) == 0
    images = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(images) >= 20
    assert all(complete and natural for complete, natural, _ in images)
    assert min(shown for *_, shown in images) >= 35
    figures = browser.execute_script("return [...document.querySelectorAll('.scroll > img')].map(i => i.clientWidth)")
    assert min(figures) >= 600
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [1400, 390])
def test_a_number_opens_its_provenance(whole: WorkingCopy, page: str, browser: webdriver.Chrome, width: int) -> None:
    open_at(browser, page, width)
    assert browser.find_elements("css selector", ":popover-open") == []
    row = next(r for r in browser.find_elements("css selector", ".numbers tbody tr") if r.text.startswith("msd2"))
    button = row.find_elements("css selector", "button")[5]
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})", button
    )
    button.click()
    (opened,) = browser.find_elements("css selector", ":popover-open")
    (evaluation,) = whole.results("compare").glob("evaluation/msd2-*/manifest.json")
    path = str(evaluation.relative_to(whole.folder))
    terms = [e.text for e in opened.find_elements("css selector", "dt")]
    said = dict(zip(terms, [e.text for e in opened.find_elements("css selector", "dd")], strict=True))
    assert said["manifest"] == path
    assert said["sha256"] == sha256_file(evaluation)
    assert said["made by"] == f"msd evaluate {path} --configfile experiments/compare.yaml"
    assert opened.find_element("css selector", ".value").text == str(
        read_json(evaluation)["results"]["metrics"]["fd_digits"]
    )
    inside = browser.execute_script("const r = arguments[0].getBoundingClientRect(); return [r.left, r.right]", opened)
    assert inside[0] >= 0
    assert inside[1] <= width
    browser.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert browser.find_elements("css selector", ":popover-open") == []


def test_report_on_paper(whole: WorkingCopy, page: str, browser: webdriver.Chrome) -> None:
    msd(whole, "report", "--pdf", "report.pdf")
    content = (whole.folder / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    browser.get(page)
    sections = len(browser.find_elements("css selector", "section"))
    # the first section stands under the title, each other begins a page
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= sections
    closed = "return [...document.querySelectorAll('details:not([open]) img')].map(i => i.checkVisibility())"
    assert any(not seen for seen in browser.execute_script(closed))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert all(browser.execute_script(closed)), "what is folded up stays so on paper"
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"


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
