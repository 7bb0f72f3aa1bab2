"""report.html on paper: printed by a Chromium that is on the machine. The style sheet's print rules do the layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from msd.errors import MissingFileError, MsdError
from msd.plan import Plan
from msd.report.check import current_report
from msd.store import write_with

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-pdf-header-footer",
)
LIMIT = 300  # seconds


def print_report(plan: Plan, out: Path) -> None:
    """Print the page of an experiment as PDF.

    Raises:
        MissingFileError: there is no report yet, or no Chromium.
        DamagedFileError: the report is of other settings or older results.
        MsdError: Chromium failed.
    """
    print_page(current_report(plan).file("report.html"), out)


def print_page(page: Path, out: Path) -> None:
    """Print one HTML file as PDF. For errors see ``print_report``."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise MissingFileError(
            "There is no browser to print with.",
            where=f"looked for {', '.join(BROWSERS)} in PATH",
            todo=f"Install Chromium (Debian: apt install chromium), or open {page} in any browser and print it there.",
        )
    write_with(out, lambda path: _print(browser, page, path))


def _print(browser: str, page: Path, out: Path) -> None:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox for root
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, *sandbox, f"--user-data-dir={profile}", f"--print-to-pdf={out.resolve()}"]
        try:
            done = subprocess.run(
                [*command, page.resolve().as_uri()], capture_output=True, text=True, errors="replace", timeout=LIMIT
            )
            why = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode} and said nothing"]
        except subprocess.TimeoutExpired:
            why = [f"it took more than {LIMIT} seconds"]
    if not out.exists():
        raise MsdError(
            "Chromium did not print the page.",
            where=str(page),
            why=f"{browser}: {why[0]}",
            todo="Open the page in a browser and print it there.",
        )
