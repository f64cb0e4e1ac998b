"""README and docs name nothing that is not there: links, anchors, commands, keys, Python names, files, generated pages."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from docs_blocks import FENCE, REPO, pages

PAGES = [*pages(), *sorted(str(p.relative_to(REPO)) for p in (REPO / "docs/reference").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


@cache
def prose(page: str) -> str:
    """A page without its blocks."""
    return FENCE.sub("", (REPO / page).read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them; the two agree on all that are linked to."""
    found = set()
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        found |= {re.sub(r"\s", "-", words), re.sub(r"[-\s]+", "-", words)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for match in LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPO / page).parent / path if path else REPO / page
        if not file.exists():
            broken.append(target)
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.resolve()):
            broken.append(f"{target}: no such heading")
    assert broken == []


def test_rows_of_tables_are_whole() -> None:
    """A cell with a line break would end its table; a bar in a cell is `&#124;`, which all readers of Markdown show."""
    broken = []
    for page in PAGES:
        above = 0
        for line in prose(page).splitlines():
            cells = line.count("|") if line.startswith("|") else 0
            if above and line.strip() and cells != above and not line.startswith("<!--"):
                broken.append(f"{page}: {line[:60]}")
            above = cells
    assert broken == []


def test_the_site_links_to_pages_of_its_own_alone() -> None:
    """A link out of docs/ works in the repository and not in the site."""
    outside = [
        f"{page}: {target}"
        for page in PAGES
        if page.startswith("docs/")
        for target, image in LINK.findall(prose(page))
        if target and not target.startswith(("http", "#"))
        and REPO / "docs" not in ((REPO / page).parent / target.partition("#")[0]).resolve().parents
    ]  # fmt: skip
    assert outside == []


def spans(*names: str) -> list[tuple[str, str]]:
    """(page, text) of everything in backticks."""
    return [(page, text) for page in names or PAGES for text in CODE.findall(prose(page))]


def test_commands_exist() -> None:
    wrong = []
    for page, text in spans():
        if text.startswith("aligntune "):
            given = re.split(r"[ ]", text)[1:]
            if (unknown := unknown_command(given)) is not None:
                wrong.append(f"{page}: `{text}` ({unknown})")
    assert wrong == [], "\n".join(wrong)


def unknown_command(given: list[str]) -> str | None:
    """The word that is no command, or option, of the program; None where all are known."""
    from aligntune.cli.main import program

    group: click.Command = program
    context = click.Context(program, info_name="aligntune")
    for word in given:
        if word.startswith("--"):
            shown = (
                group.get_command(context, "run") if group.name == "eval" and isinstance(group, click.Group) else group
            )
            options = {o for p in (shown or group).params for o in [*p.opts, *p.secondary_opts]}
            if word.rstrip(",").partition("=")[0] not in options | {"--help"}:
                return word
        elif isinstance(group, click.Group) and re.fullmatch(r"[a-z-]+", word) and word not in ("xyz",):
            found = group.get_command(context, word)
            if found is None:
                return None if group is not program and _default(group) else word
            context = click.Context(found, parent=context, info_name=word)
            group = found
    return None


def _default(group: click.Group) -> bool:
    """Whether the group runs a command of its own where none is named (`aligntune eval FILE`)."""
    return group.name in ("eval", "diagnose")


KEY = re.compile(r"(model|train|dataset|datasets|generation|evaluation|logging|composition|judge|health|cache|algo|task)"
                 r"((?:\.[a-z_0-9]+)+)(?:=.*)?")  # fmt: skip


ATTRIBUTES = {"judge.usage"}
"""Attributes of Python objects that read like keys."""
ELSEWHERE = {"docs/algo/baseline.md"}
"""Files of other projects."""


def keys(definition: dict[str, Any], defs: dict[str, Any], depth: int = 0) -> set[str]:
    """Every dotted key below a definition of the schema."""
    found: set[str] = set()
    for name, entry in definition.get("properties", {}).items():
        found.add(name)
        for ref in references(entry) if depth < 4 else ():
            found |= {f"{name}.{k}" for k in keys(defs[ref.rpartition("/")[2]], defs, depth + 1)}
    return found


def references(entry: Any) -> list[str]:
    """The definitions that a value of the schema may be of."""
    if isinstance(entry, list):
        return [r for option in entry for r in references(option)]
    if not isinstance(entry, dict):
        return []
    return [entry["$ref"]] if "$ref" in entry else references([entry.get(k) for k in ("anyOf", "allOf", "items")])


def test_keys_exist() -> None:
    from aligntune.core.config.schema import run_schema

    schema = run_schema()
    defs = schema["$defs"]
    known = keys(defs["SFTConfig"], defs) | keys(defs["RLConfig"], defs)
    files = {"yaml", "jsonl", "py", "json", "parquet", "csv", "html", "md", "log"}
    wrong = set()
    for page, text in spans():
        match = KEY.fullmatch(text)
        if match is None or match[2].rpartition(".")[2] in files:
            continue
        key = re.sub(r"\.\d+", "", match[1] + match[2])
        if key not in known and text not in ATTRIBUTES:
            wrong.add(f"{page}: `{text}`")
    assert wrong == set()


def test_python_names_exist() -> None:
    wrong = set()
    for page, text in spans():
        for dotted in re.findall(r"\baligntune(?:\.\w+)+", text):
            if "/" in text.partition(dotted)[0][-1:] or dotted.endswith((".yaml", ".json")):
                continue
            if not importable(dotted):
                wrong.add(f"{page}: {dotted}")
    assert wrong == set()


@cache
def importable(dotted: str) -> bool:
    """Whether the name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def test_files_of_the_project_exist() -> None:
    start = re.compile(r"(benchmarks|tests|scripts|examples|docs|src)/[\w./-]+\.(py|json|md|yaml|txt|ipynb)")
    wrong = {
        f"{page}: `{text}`"
        for page, text in spans()
        if start.fullmatch(text) and text not in ELSEWHERE and "PART" not in text and not (REPO / text).exists()
    }
    assert wrong == set()


def test_names_of_the_paper_are_where_the_page_says() -> None:
    rows = re.findall(r"^\| (`aligntune[\w.]+`: .+?) \|", prose("docs/how-to/from-the-paper.md"), re.MULTILINE)
    assert len(rows) > 8
    for row in rows:
        module, *names = CODE.findall(row)
        found = importlib.import_module(module)
        assert [n for n in names if not hasattr(found, n)] == [], module


@pytest.mark.parametrize("script", ["reference_pages.py", "measured_page.py", "use_case_tables.py"])
def test_pages_made_from_the_code_are_fresh(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = REPO / "scripts" / script
    monkeypatch.setattr(sys, "argv", [str(path), "--check"])
    assert runpy.run_path(str(path))["main"]() == 0, f"run python scripts/{script}"


def test_every_page_stands_in_the_navigation() -> None:
    def listed(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [p for e in (entry if isinstance(entry, list) else entry.values()) for p in listed(e)]

    nav = listed(yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(f"docs/{p}" for p in nav) == sorted(p for p in PAGES if p.startswith("docs/"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'aligntune[docs]'")
    pytest.importorskip("material", reason="pip install 'aligntune[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPO, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text(encoding="utf-8")
        )
        assert [url for url in loaded if 'rel="canonical' not in url] == [], page


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    run = json.loads((REPO / "benchmarks/results/quickstart.json").read_text(encoding="utf-8"))["runs"][0]
    for stage in run["summary"]["stages"]:
        value, low, high = (f"{100 * stage['accuracy'][key]:.1f}" for key in ("value", "low", "high"))
        assert f"| {value}% ({low} to {high}) |" in prose("README.md"), stage["name"]
