"""Every command line of README and docs is run, as it is written, in a folder of small stand-ins (`docs_folder`).

Commands that train or evaluate are marked slow; all others run in the default suite. Each has a copy of the folder to
itself. The pages that go step by step are run from top to bottom in test_docs_walk.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import docs_folder
from conftest import Ran
from docs_blocks import every, words
from endpoint import Endpoint, Reply

STEP_BY_STEP = ("docs/index.md", "docs/how-to/")
QUICK = re.compile(
    r"check (?!.*--smoke)|train .*--dry-run|recipes (list|show)|rewards (test|score|audit|rescore|list|show)|report|diff|"
    r"data (split|inspect|presets|cache)|info|config|eval (list|show|compare)|run .*--dry-run"
)
"""Commands of a second or two."""
APART = re.compile(r"unsloth|gpu_shaped|diagnose isolation")
"""Commands that need a process of their own."""
CODES = {
    "data pairs --model runs/sft --dataset prompts.jsonl --judge": {0, 2},  # a judge that names A confirms no pair
    "rewards validate": {0, 1},
    "rewards test": {0, 1},
    "check": {0, 1},
    "diagnose": {0, 1, 3},
}
"""Exit codes that are an answer rather than a failure, by the beginning of the command."""
COMMANDS = {
    command: block
    for block in every("bash", "console")
    if not block.needs and not block.is_loop and not block.page.startswith(STEP_BY_STEP)
    for command in block.commands()
    if "aligntune" in command
}


def slow(command: str) -> Any:
    mark = () if QUICK.search(command.removeprefix("aligntune ")) else (pytest.mark.slow,)
    return pytest.param(command, id=f"{COMMANDS[command]} {command}"[:100], marks=mark)


@pytest.fixture
def folder(docs_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as the working folder, with the hub's data sets in small."""
    import datasets

    copy = shutil.copytree(docs_prepared, tmp_path / "here")
    monkeypatch.chdir(copy)
    monkeypatch.setattr(datasets, "load_dataset", docs_folder.hub_data)
    return Path(copy)


def stopped(run: Callable[..., Ran]) -> None:
    """A run that stopped with a checkpoint: one of four steps, whose end is taken away."""
    assert run("train", "run.yaml", "train.max_steps=4", "train.save_steps=2", "--no-check").code == 0
    for path in Path("out").iterdir():
        if path.suffix == ".safetensors" or path.name in ("config.json", "checkpoint-4", "report.html"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = Path("out/manifest.json")
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))


def prepare_for(command: str, run: Callable[..., Ran]) -> None:
    """What a command needs beside the folder: an earlier command's result, or that a file is not there yet."""
    if "--resume" in command:
        stopped(run)
    if "--out pairs.jsonl" in command:
        Path("pairs.jsonl").unlink()
    if "--output-dir runs/compared" in command:
        shutil.rmtree("runs/compared")
    if "--from dpo" in command:
        assert run("run", "assistant.yaml").code == 0
    if command.startswith("aligntune train qwen3"):
        assert run("recipes", "copy", "qwen3-0.6b-grpo-gsm8k").code == 0


def small(command: str) -> list[str]:
    """Changes that make a command small where it names its settings itself, or where the settings of a recipe are large."""
    given = words(command)[1:]
    if given[0] == "train" and "--dry-run" not in given and not {"run.yaml", "grpo.yaml"} & set(given):
        sizes = ["train.max_steps=2", "train.per_device_batch_size=4", "model.max_seq_length=256"]
        if "grpo" in command:
            sizes += ["algo.num_generations=2", "generation.max_prompt_length=200"]
            sizes += ["generation.max_completion_length=8"]
        return [a for a in given if a not in ("--max-steps", "100")] + sizes
    if given == ["quickstart"]:
        return ["quickstart", "--fast"]
    changes = {"train.max_steps=20": "train.max_steps=3", "train.max_steps=50": "train.max_steps=3"}
    given = [changes.get(a, a) for a in given]
    if given[:2] == ["data", "pairs"] and "pairs.yaml" not in given:
        given += ["sampling.max_new_tokens=6", "sampling.keep_truncated=true"]
    if given[:2] == ["data", "pairs"] and "pairs.yaml" in given:
        given += ["sampling.keep_truncated=true"]
    if given[0] == "compare":
        if "--seeds" in given:
            del given[given.index("--seeds") : given.index("--seeds") + 2]
        given += ["--seeds", "2", "logging.steps=1"]
    return given


@pytest.mark.parametrize("command", [slow(c) for c in COMMANDS])
def test_the_command_does_what_it_says(
    command: str, folder: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_for(command, cli)
    before, _, last = command.rpartition(" | ")
    given = small(last)
    if "localhost:8000" in command:
        with Endpoint(lambda call: Reply('{"reason": "better", "winner": "A"}')) as endpoint:
            ran = cli(*[a.replace("http://localhost:8000/v1", endpoint.url) for a in given])
    elif APART.search(command):
        done = subprocess.run([sys.executable, "-m", "aligntune", *given], capture_output=True, text=True, check=False)
        ran = Ran(done.returncode, done.stdout, done.stderr)
    else:
        if before:
            monkeypatch.setattr("sys.stdin", (folder / before.split()[1]).open(encoding="utf-8"))
        ran = cli(*given)
    allowed = next((codes for start, codes in CODES.items() if command.startswith(f"aligntune {start}")), {0})
    assert ran.code in allowed, ran.err[-2000:]
    assert "unexpected" not in ran.err
    assert ran.out or ran.err


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in every("bash") if b.is_loop], ids=str)
def test_the_scripts_of_the_shell_run(block: Any, folder: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", block.text], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "out" / "manifest.json").is_file()
