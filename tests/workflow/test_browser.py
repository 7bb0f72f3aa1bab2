"""What a person opens, in a real browser: report.html from disk, and plain `mlflow ui` in the root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from working_copy import COMMANDS, WorkingCopy

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1400,1000"
)


@pytest.fixture(scope="module")
def whole(copy: WorkingCopy) -> WorkingCopy:
    copy.run("all")
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
    browser.get(f"file://{whole.results('micro') / 'report.html'}")
    assert "micro" in browser.page_source
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) >= 3
    assert all(widths)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    browser.set_window_size(420, 900)
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 1, "a narrow window has to scroll sideways"


@pytest.fixture
def mlflow_ui(whole: WorkingCopy) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = whole.environment() | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server = subprocess.Popen(
        [str(COMMANDS / "mlflow"), "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        cwd=whole.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline, "mlflow ui did not start"
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def test_mlflow_ui_shows_the_runs(mlflow_ui: str, browser: webdriver.Chrome) -> None:
    browser.get(f"{mlflow_ui}/#/experiments/1/runs")
    _wait(browser, "return document.body.innerText.split('\\n').filter(line => line.trim() == 'pair')")


def _wait(browser: webdriver.Chrome, script: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if browser.execute_script(script):
            return
        time.sleep(0.5)
    raise AssertionError(
        f"nothing came of: {script}\n{browser.execute_script('return document.body.innerText')[:2000]}"
    )
