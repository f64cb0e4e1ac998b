"""The page around every report: one HTML file that loads nothing and follows the reader's colours.

A content security policy forbids requests and every script but one: that of the item browser, named by its SHA-256, on
pages that have one. Jinja escapes every value, because what a model wrote is untrusted text. `Markup` marks the SVG
that we draw ourselves. A page has at most `MOST_BYTES`; `write_fitting` leaves out items until it does.

>>> write_page(Path("report.html"), "run.html.j2", title="sft", ...)
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.report import numbers
from aligntune.utils.files import disk_errors, write_atomic

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 6_000_000
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_page(template: str, **values: Any) -> str:
    """The page as text.

    Args:
        template: a file in `templates`.
        values: what it shows; strings are escaped.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        compact=numbers.compact,
        percent=numbers.percent,
        points=numbers.points,
        fixed=numbers.fixed,
        seconds=numbers.seconds,
        size=numbers.size,
        words=message_text,
        shortened=shortened,
    )
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    script = None
    policy = POLICY
    if getattr(values.get("evaluation"), "has_items", False):
        source = "\n" + (TEMPLATES / "browser.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        script, policy = Markup(source), f"{POLICY}; script-src 'sha256-{digest}'"  # noqa: S704 - our own file
    return environment.get_template(template).render(style=style, script=script, policy=policy, **values)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render and write the page, atomically; return its path. A lone surrogate becomes its escape."""
    return _write(path, _bytes(render_page(template, **values)))


def write_fitting(path: Path, template: str, values: Callable[[int], dict[str, Any]], budget: int) -> Path:
    """As `write_page`, with as many items and answers as let the page keep to `MOST_BYTES`.

    Args:
        path: the file.
        template: a file in `templates`.
        values: what the page shows when items (and answers, where they are bounded) may take so many bytes.
        budget: what these may take at most.
    """
    while True:
        page = _bytes(render_page(template, **values(budget)))
        if len(page) <= MOST_BYTES or budget == 0:
            return _write(path, page)
        budget = max(0, budget - (len(page) - MOST_BYTES) - 100_000)


def _write(path: Path, page: bytes) -> Path:
    """Write a page, and the folders above it that are not there."""
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{path.parent} is a file, so no page can be written into it", hint="write the page to another folder"
        ) from error
    return path


def _bytes(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")


def weight(texts: Iterable[str]) -> int:
    """Bytes that texts take in a page; escaping makes a character up to six."""
    from markupsafe import escape

    return sum(len(_bytes(str(escape(text)))) for text in texts)


def shortened(text: str, most: int = 4000) -> str:
    """A long text cut, with how much is missing."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def message_text(value: Any) -> str:
    """A prompt or answer as text: a conversation becomes lines that begin with the role."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and "content" in item for item in value):
        if len(value) == 1:
            return str(value[0]["content"])
        return "\n".join(f"{item.get('role', '')}: {item['content']}" for item in value)
    return "" if value is None else str(value)
