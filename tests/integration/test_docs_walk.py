"""The pages that go step by step, run from top to bottom as a reader would: each file written, each command run.

`docs/index.md` begins in an empty folder, with the program and nothing else. The how-to pages begin in the folder of
`docs_folder`. All are slow. The step before, installing into a fresh environment, is tested in test_wheel.py.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import docs_folder
import runs
from conftest import Ran
from docs_blocks import Block, accept, blocks, pages, play, words
from endpoint import Call, Endpoint, Reply

pytestmark = pytest.mark.slow
HOW_TO = [p for p in pages() if p.startswith("docs/how-to/")]
ANSWERS = {"rewards test": {0, 1}, "diagnose": {0, 1, 3}, "rewards audit": {0}, "check": {0}}
"""Exit codes that are an answer, by the beginning of the command."""


class Reader:
    """Does what a page says, block by block, in the working folder."""

    def __init__(self, page: str, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, url: str = "") -> None:
        self.page, self.cli, self.url = page, cli, url
        self.scripts: dict[str, dict[str, Any]] = {}
        module = ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", module)
        self.space: dict[str, Any] = vars(module)

    def read(self) -> None:
        for block in blocks(self.page):
            if block.needs or block.language == "text":
                continue
            if block.file:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(self.local(block.text), encoding="utf-8")
            if block.language in ("bash", "console"):
                self.run(block)
            elif block.language == "yaml":
                accept(block.text, Path.cwd())
            elif not block.file:
                play(self.local(block.text), self.space)

    def local(self, text: str) -> str:
        return text.replace("http://localhost:8000/v1", self.url) if self.url else text

    def run(self, block: Block) -> None:
        for command in block.commands():
            given = words(self.local(command))
            if given[0] == "python":
                self.scripts[given[1]] = runpy.run_path(given[1], run_name="__main__")
                continue
            assert given[0] == "aligntune", f"{block}: {command}"
            ran = self.cli(*given[1:])
            allowed = next((v for k, v in ANSWERS.items() if command.startswith(f"aligntune {k}")), {0})
            assert ran.code in allowed, f"{block}: {command}\n{ran.out[-1500:]}\n{ran.err[-1500:]}"
            if " > " in command:
                Path(command.rpartition(" > ")[2].strip()).write_text(ran.out, encoding="utf-8")


def test_the_first_page_from_an_empty_folder(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader("docs/index.md", cli, monkeypatch)
    reader.read()
    before, after = (
        json.loads((tmp_path / "runs/mine" / part / "results.json").read_text(encoding="utf-8"))
        for part in ("evaluation/before", "evaluation")
    )
    low, high = (headline(r) for r in (before, after))
    assert high["low"] > low["high"] + 0.2  # the base adds, and 100 steps teach it to answer
    own = runs.logged(tmp_path / "runs/policy", "rewards/only_a_number/mean")
    assert len(own) == 10  # the reader's own reward was asked at each step
    assert 0 < own[-1] <= 1
    models = {p.name for p in (tmp_path / "runs/scores").iterdir()}
    assert models == {"0-base", "1-mine", "2-policy"}
    compared = json.loads((tmp_path / "runs/rates/comparison.json").read_text(encoding="utf-8"))
    assert [run["status"] for run in compared["runs"]] == ["finished"] * 4  # two rates, two seeds
    assert "eval/sums/accuracy" in {row["value"] for row in compared["rows"]}
    pages = ("runs/quickstart/report.html", "runs/mine/report.html", "runs/policy/report.html", "runs/comparison.html")
    for name in (*pages, "scores.html"):
        assert (tmp_path / name).stat().st_size > 20_000


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The accuracy of a stored result."""
    return result["tasks"]["sums"]["metrics"]["accuracy"]  # type: ignore[no-any-return]


def verdict(call: Call) -> Reply:
    """4 at first, then other levels in turn: a judge that gave all answers one level would leave no pairs."""
    level = 4 if call.number == 0 else 1 + call.number % 5
    return Reply(json.dumps({"reason": "as asked", "score": level}))


@pytest.mark.parametrize("page", HOW_TO)
def test_a_how_to_page_from_top_to_bottom(
    page: str, docs_prepared: Path, cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(shutil.copytree(docs_prepared, tmp_path / "here"))
    monkeypatch.setattr(datasets, "load_dataset", docs_folder.hub_data)
    with Endpoint(verdict) as endpoint:
        reader = Reader(page, cli, monkeypatch, endpoint.url)
        reader.read()
    if page.endswith("from-trl.md"):
        same_as_trl(reader)


def same_as_trl(reader: Reader) -> None:
    """A script on bare TRL and the file that it becomes have the same losses."""
    for script, folder in (("trl_sft.py", "runs/our-sft"), ("trl_dpo.py", "runs/our-dpo")):
        theirs = [row["loss"] for row in reader.scripts[script]["trainer"].state.log_history if "loss" in row]
        assert len(theirs) == 4
        assert runs.logged(folder)[:4] == pytest.approx(theirs, abs=1e-5)
