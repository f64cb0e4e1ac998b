"""The blocks of README.md and docs/: found in one way, checked or run by their language.

    for block in blocks("docs/data.md"):
        block.language, block.text, block.needs

A block is fenced and names its language. What is done with it:

| language | done |
|---|---|
| `python` | run, the blocks of a page in one namespace in their order; an expression with a literal comment has that value |
| `yaml` | read by the schema that it belongs to |
| `bash` | each `aligntune` command line is parsed by the program's own parser, and run |
| `console` | the same for the lines behind `$ `; what stands below them is output |
| `text` | output and layouts; holds no command |

A block that cannot run here says why in a comment on the line before its fence, `<!-- needs: hub -->`, one of `NEEDS`.
A block whose text is run with a part put in the place of the real one says so: `<!-- test: a stub in place of X -->`.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parent.parent
LANGUAGES = ("bash", "console", "python", "text", "yaml")
NEEDS = {
    "index": "installs packages from an index",
    "hub": "downloads a model or a data set of which no stand-in is small",
    "gpu": "needs a CUDA GPU",
    "endpoint": "asks a server that is not here",
    "keys": "needs someone at the keyboard",
    "checkout": "runs in a checkout with its environment, as the checks of every commit do",
}
"""Why a block is not run by a test."""
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!-- (?P<key>\w+): (?P<value>.+?) -->\n\Z")
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:yaml|py|csv|jsonl))(?::.*)?\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path from the repository's root.
        line: of the opening fence, from 1.
        needs: key of `NEEDS`, or "".
        stub: what the test puts in the place of something, or "".
        file: the name in the block's first line (`# run.yaml`), or "".
    """

    page: str
    line: int
    language: str
    text: str
    needs: str = ""
    stub: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The command lines of a bash or console block, without comments."""
        if self.language == "console":
            return [clean(line[2:]) for line in self.text.splitlines() if line.startswith("$ ")]
        lines = re.sub(r" *\\\n *", " ", self.text).splitlines()
        return [c for line in lines for c in clean(line).split(" && ") if c]

    @property
    def is_loop(self) -> bool:
        """Whether it is a script of the shell rather than a list of commands."""
        return self.language == "bash" and re.search(r"^(until|while|for) ", self.text, re.MULTILINE) is not None


def pages() -> list[str]:
    """Every page that people write, as paths from the repository's root; `docs/reference` is made from the code."""
    fixed = ["README.md", "CONTRIBUTING.md", "AGENTS.md", "examples/README.md"]
    written = sorted(str(p.relative_to(REPO)) for p in (REPO / "docs").rglob("*.md"))
    return fixed + [p for p in written if not p.startswith("docs/reference/")]


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in their order, of these languages or of all."""
    text = (REPO / page).read_text(encoding="utf-8")
    found = [_block(page, text, match) for match in FENCE.finditer(text)]
    return [b for b in found if not languages or b.language in languages]


def every(*languages: str) -> list[Block]:
    """The blocks of all pages."""
    return [block for page in pages() for block in blocks(page, *languages)]


def _block(page: str, text: str, match: re.Match[str]) -> Block:
    said = COMMENT.search(text, 0, match.start())
    marks = {said["key"]: said["value"]} if said else {}
    body = match["text"]
    named = FILE_NAME.match(body)
    return Block(
        page,
        text.count("\n", 0, match.start()) + 1,
        match["language"],
        body,
        needs=marks.get("needs", ""),
        stub=marks.get("test", ""),
        file=named[1] if named else "",
    )


def clean(line: str) -> str:
    """A line of the shell without its comment."""
    return re.sub(r"(^|\s+)#.*$", "", line).strip()


# Python


def play(text: str, space: dict[str, Any]) -> None:
    """Run a block; an expression whose comment is a literal must have that value."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        code = ast.Module([node], [])
        if not isinstance(node, ast.Expr):
            exec(compile(code, "page", "exec"), space)
            continue
        value = eval(compile(ast.Expression(node.value), "page", "eval"), space)
        said = re.search(r"  # (.+)$", lines[(node.end_lineno or 1) - 1])
        if said:
            first, _, other = said[1].partition("; as a sum ")
            assert same(value, literal(first)), (lines[node.lineno - 1], value)
            assert not other or not same(value, literal(other))


def literal(said: str) -> Any:
    """The value that a comment gives; `...` where it gives none."""
    try:
        return ast.literal_eval(said)
    except (SyntaxError, ValueError):
        return ...


def same(value: Any, said: Any) -> bool:
    """Whether a value is what a comment says, numbers up to rounding; true where it says none."""
    return said is ... or bool(value == (pytest.approx(said) if not isinstance(said, (str, bool)) else said))


# YAML


def accept(text: str, folder: Path) -> None:
    """Read a YAML block by the schema that it belongs to.

    Raises:
        AlignTuneError: it is refused.
        AssertionError: it belongs to no schema.
    """
    if text.startswith("judge:") and "url: ..." in text:  # several lines, each a section of its own
        for line in text.splitlines():
            accept_value(yaml.safe_load(line.replace("url: ...", "url: http://localhost:8000/v1")), folder)
        return
    accept_value(yaml.safe_load(text), folder)


RUN = {"model": {"name_or_path": "m"}, "output_dir": "runs/x"}


def accept_value(raw: Any, folder: Path) -> None:
    """Read the value of a block: a list, a file of its own, or sections of one."""
    from aligntune.core.config.io import load_config

    if isinstance(raw, list):
        raw = {"tasks": raw} if isinstance(raw[0], str) or {"kind", "use"} & set(raw[0]) else {"rewards": raw}
    for sign, read in READERS:
        if sign(raw):
            read(raw, folder)
            return
    assert isinstance(raw, dict), raw
    given = {k: v for k, v in raw.items() if k in SECTIONS}
    assert given == raw, f"sections that belong to no file: {set(raw) - set(given)}"
    sft = {"task": "instruction_following", "dataset": "rows.jsonl", **RUN}
    rl = {"algo": "grpo", "datasets": ["rows.jsonl"], "rewards": ["length"], **RUN}
    load_config(
        {**(rl if {"datasets", "rewards", "composition", "judge", "generation", "health"} & set(raw) else sft), **raw}
    )


SECTIONS = {
    "dataset", "datasets", "train", "evaluation", "logging", "cache", "health", "backend", "rewards", "composition",
    "judge", "generation", "isolation", "model",
}  # fmt: skip


def _run(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.core.config.io import load_config

    load_config(raw)


def _stages(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.stages.config import load_stages

    for stage in raw["stages"]:
        if "file" in stage:  # an ordinary run file, which the block changes in part
            (folder / stage["file"]).write_text("algo: dpo\ntrain: {max_steps: 20}\n", encoding="utf-8")
    load_stages(raw)


def _evaluation(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.eval.config import build_eval_config

    build_eval_config({"model": {"name_or_path": "m"}, **raw})


def _tasks(raw: dict[str, Any], folder: Path) -> None:
    wanted = [t for t in raw["tasks"] if not (isinstance(t, dict) and ".yaml:" in t.get("use", ""))]
    _evaluation({"tasks": wanted}, folder)


def _pairs(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.data.pairs.config import build_pairs_config

    build_pairs_config(raw)


def _reward_model(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.rewards.training.config import load_reward_config

    load_reward_config(raw)


def _rubric(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.rewards.judges import load_rubric

    (folder / "rubric.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert load_rubric(str(folder / "rubric.yaml")).name == raw["name"]


def _trial(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.sections import DatasetConfig, RewardConfig

    for one in raw["rewards"]:
        parse_section(RewardConfig, one, "rewards")
    parse_section(DatasetConfig, raw["data"], "data")


def _judge(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.sections import JudgeConfig

    settings = {k: "m" if v is ... else v for k, v in raw["judge"].items()}
    assert not parse_section(JudgeConfig, {"model": "m", **settings}, "judge").faults()


def _presets(raw: dict[str, Any], folder: Path) -> None:
    from aligntune.data.presets import get_preset

    (folder / "presets.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for name in raw:
        get_preset(f"{folder / 'presets.yaml'}:{name}")


READERS: list[tuple[Any, Any]] = [
    (lambda raw: "stages" in raw, _stages),
    (lambda raw: {"tasks", "lm_eval"} & set(raw) and "model" in raw, _evaluation),
    (lambda raw: "tasks" in raw, _tasks),
    (lambda raw: "select" in raw or "sampling" in raw, _pairs),
    (lambda raw: "objective" in raw, _reward_model),
    (lambda raw: "scale" in raw, _rubric),
    (lambda raw: "data" in raw, _trial),
    (lambda raw: set(raw) == {"judge"}, _judge),
    (lambda raw: {"task", "algo"} & set(raw), _run),
    (lambda raw: all(isinstance(v, dict) and "format" in v for v in raw.values()), _presets),
]
"""A sign by which a file is known, and what reads it; the first that fits."""


# The command line


def words(command: str) -> list[str]:
    """The words of a command up to a redirection."""
    return shlex.split(command.partition(" > ")[0])


def parse_command(arguments: list[str]) -> None:
    """Parse `aligntune ...` as the program does, without running it.

    Raises:
        click.UsageError, ConfigurationError: there is no such command, option or argument.
    """
    import click

    from aligntune.cli.console import Settings
    from aligntune.cli.main import program

    group: click.Command = program
    rest = list(arguments)
    context = None
    while True:
        context = group.make_context(
            group.name or "aligntune", list(rest), parent=context, obj=Settings.read(arguments)
        )
        rest = list(getattr(context, "_protected_args", [])) + context.args
        if not isinstance(group, click.Group) or not rest:
            return
        name, found, left = group.resolve_command(context, rest)
        assert found is not None, name
        group, rest = found, left


def shell_lines(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block, with its words; the part before a pipe stays in the command."""
    for command in block.commands():
        yield command, words(command.rpartition(" | ")[2])
