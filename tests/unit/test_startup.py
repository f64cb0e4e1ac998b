"""What a fresh process has imported after the cheap things: nothing heavy, so that they answer at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aligntune.cli.main import NOT_COMMANDS, Commands

HEAVY = [
    "torch",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "accelerate",
    "unsloth",
    "numpy",
    "pandas",
    "pyarrow",
    "math_verify",
]
COMMANDS = [n for n in Commands().list_commands(None) if n not in NOT_COMMANDS]  # type: ignore[arg-type]


def loaded_after(code: str, cwd: Path, names: list[str] = HEAVY) -> list[str]:
    """Run code in a fresh process; which of `names` are in `sys.modules` at its end?"""
    script = f"import sys, json\n{code}\nprint(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_light(tmp_path: Path) -> None:
    assert loaded_after("import aligntune", tmp_path, [*HEAVY, "pydantic", "yaml"]) == []


def test_names_of_the_root_are_found_without_torch(tmp_path: Path) -> None:
    code = "import aligntune\nassert [getattr(aligntune, n) for n in dir(aligntune)]"
    assert loaded_after(code, tmp_path) == []


def test_help_is_light(tmp_path: Path) -> None:
    code = "from aligntune.cli.main import main\nassert main(['--help']) == 0"
    assert loaded_after(code, tmp_path, [*HEAVY, "pydantic", "yaml", "rich"]) == []


def test_help_of_every_command_is_light(tmp_path: Path) -> None:
    code = f"from aligntune.cli.main import main\nassert [main([c, '--help']) for c in {COMMANDS!r}] == [0] * {len(COMMANDS)}"
    assert loaded_after(code, tmp_path, [*HEAVY, "pydantic", "yaml"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "algo: gpro\nmodel: {name_or_path: m}\ndatasets: [d.jsonl]\n",
        "task: instruction_following\nmodel: {name_or_path: m}\ndataset: d.jsonl\ntrain: {learning_rat: 1}\n",
        "algo: {name: grpo, num_generations: 3}\nmodel: {name_or_path: m}\ndatasets: [d.jsonl]\nrewards: [length]\n",
    ],
)
def test_a_refused_config_is_light(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    code = "from aligntune.cli.main import main\nassert main(['train', 'run.yaml']) == 2"
    assert loaded_after(code, tmp_path) == []


def test_a_dry_run_imports_no_torch(tmp_path: Path) -> None:
    text = "task: instruction_following\nmodel: {name_or_path: m}\ndataset: d.jsonl\n"
    (tmp_path / "run.yaml").write_text(text)
    code = "from aligntune.cli.main import main\nassert main(['train', 'run.yaml', '--dry-run']) == 0"
    assert loaded_after(code, tmp_path, ["torch", "transformers", "trl", "peft"]) == []
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aligntune", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("aligntune ")


def test_an_error_with_nobody_reading_leaves_no_traceback(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "aligntune", "train", str(tmp_path / "none.yaml"), "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
