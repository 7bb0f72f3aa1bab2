"""Jinja for the report's pages: templates of this package, and the filters that they share."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape


def fill(template: str, **values: Any) -> Markup:
    """Render one template of ``templates/``."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("msd.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ticks": ticks, "breakable": breakable, "inline": inline, "pretty": pretty}
    return environment


def ticks(text: str) -> Markup:
    """Plain text with names in backticks → escaped HTML with names in <code> and units that stay by their numbers."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(?<=\d) (?=(%|ms|k|M|s|min|h)\b|%)", "\u00a0", marked))


def breakable(text: str) -> Markup:
    """A heading or a path that may go to the next line before a digest and after a slash."""
    return Markup(str(escape(text)).replace("@", "@<wbr>").replace("/", "/<wbr>"))


def inline(picture: Path | bytes) -> Markup:
    """A PNG as a data URI."""
    content = picture if isinstance(picture, bytes) else picture.read_bytes()
    return Markup("data:image/png;base64,") + base64.b64encode(content).decode()


def pretty(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)
