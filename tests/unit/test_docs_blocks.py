"""README and docs: every block says its language, every YAML block is accepted, every command line is known.

What the commands do is tested in tests/integration/test_docs_commands.py, what the Python blocks give in
test_docs_python.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from aligntune.errors import AlignTuneError, ConfigurationError
from docs_blocks import LANGUAGES, NEEDS, Block, accept, clean, every, parse_command, play, shell_lines

BLOCKS = every()


def test_every_block_says_what_it_is() -> None:
    assert len(BLOCKS) > 120
    assert [str(b) for b in BLOCKS if b.language not in LANGUAGES] == []
    assert [str(b) for b in BLOCKS if b.needs and b.needs not in NEEDS] == []
    program = re.compile(r"^\s*(\$ )?(aligntune|pip|python|make) ", re.MULTILINE)
    assert [str(b) for b in BLOCKS if b.language == "text" and program.search(b.text)] == []
    assert [str(b) for b in BLOCKS if b.language == "console" and not b.commands()] == []


def test_fences_are_closed() -> None:
    for page in {b.page for b in BLOCKS}:
        fences = re.findall(r"^ *```", (Path(__file__).parents[2] / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * sum(b.page == page for b in BLOCKS), page


YAML = [b for b in BLOCKS if b.language == "yaml" and not b.needs]


@pytest.mark.parametrize("block", YAML, ids=str)
def test_the_yaml_blocks_are_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    accept(block.text, tmp_path)


COMMANDS = [(f"{b}: {command}", given) for b in BLOCKS if b.language in ("bash", "console") and not b.is_loop
            for command, given in shell_lines(b)]  # fmt: skip


def test_every_command_line_is_known() -> None:
    """Parsed, not run; what is no `aligntune` belongs to a block that says so, or prepares files."""
    wrong = []
    for where, given in COMMANDS:
        if given[0] != "aligntune":
            block = next(b for b in BLOCKS if where.startswith(f"{b}: "))
            if not block.needs and given[0] not in ("python", "cat"):
                wrong.append(f"{where}: is no command of ours, and the block has no `<!-- needs: ... -->`")
            continue
        try:
            parse_command(given[1:])
        except (AlignTuneError, click.ClickException, click.exceptions.Exit) as error:
            wrong.append(f"{where}: {error}")
    assert wrong == []


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    play("1 + 1      # 2\n1 + 1      # the sum", {})
    with pytest.raises(AssertionError):
        play("1 + 1      # 3", {})
    with pytest.raises(ConfigurationError):
        accept("task: instruction_following\nmodel: {name_or_path: m}\ndataset: x\ntrain: {max_step: 3}", tmp_path)
    with pytest.raises(AssertionError, match="belong to no file"):
        accept("nothing: 1", tmp_path)
    with pytest.raises(ConfigurationError, match="unknown command"):
        parse_command(["rewards", "tset"])
    with pytest.raises(click.UsageError):
        parse_command(["train", "run.yaml", "--dryrun"])
    assert clean("aligntune train run.yaml  # go") == "aligntune train run.yaml"
    assert clean("aligntune data inspect a.jsonl#5") == "aligntune data inspect a.jsonl#5"
