"""The page around every report: one HTML file that loads nothing, runs nothing and follows the reader's colours.

A content security policy forbids scripts and requests, and Jinja escapes every value, because what a model wrote is
untrusted text. `Markup` marks the SVG that we draw ourselves.

>>> write_page(Path("report.html"), "run.html.j2", title="sft", ...)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligntune.report import numbers
from aligntune.utils.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"


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
    )
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return environment.get_template(template).render(style=style, **values)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render and write the page, atomically; return its path. A lone surrogate becomes its escape."""
    text = render_page(template, **values)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))
    return path


def message_text(value: Any) -> str:
    """A prompt or answer as text: a conversation becomes lines that begin with the role."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and "content" in item for item in value):
        if len(value) == 1:
            return str(value[0]["content"])
        return "\n".join(f"{item.get('role', '')}: {item['content']}" for item in value)
    return "" if value is None else str(value)
