"""Bad input through the command line: exit code 2, one clear message that names the fault and the fix, no traceback,
nothing written and nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PAIRS = [{"prompt": f"Say {i}", "completion": f"{i} it is"} for i in range(8)]
PROMPTS = [{"prompt": f"Say {i}", "reference": str(i)} for i in range(8)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good data: every test spoils one thing."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    return tmp_path


@pytest.fixture
def refused(cli: Any, place: Path) -> Callable[..., str]:
    """`refused(config, *more arguments)`: the message of a run that must be refused and leave the folder as it is."""

    def run(config: dict[str, Any], *arguments: str, command: str = "train") -> str:
        (place / "run.yaml").write_text(yaml.safe_dump(config))
        before = snapshot(place)
        ran = cli(command, "run.yaml", *arguments)
        assert ran.code == 2, ran.err
        assert ran.out == ""
        assert "Traceback" not in ran.err
        assert ran.err.startswith("error: "), ran.err
        assert ran.err.count("hint: ") == 1, ran.err
        assert snapshot(place) == before
        return ran.err

    return run


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def snapshot(folder: Path) -> dict[str, str]:
    """Every path under the folder with the hash of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            name = str(path.relative_to(folder))
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def sft(model: Path | str, **more: Any) -> dict[str, Any]:
    train = {"max_steps": 1, "per_device_batch_size": 2}
    named = {"task": "instruction_following", "model": {"name_or_path": str(model)}, "dataset": "pairs.jsonl"}
    return {**named, "train": train, "output_dir": "out", **more}


def grpo(model: Path | str, **more: Any) -> dict[str, Any]:
    return {
        "algo": {"name": "grpo", "num_generations": 2},
        "model": {"name_or_path": str(model), "max_seq_length": 256},
        "datasets": ["prompts.jsonl"],
        "rewards": ["length"],
        "generation": {"max_prompt_length": 64, "max_completion_length": 4},
        "train": {"max_steps": 1, "per_device_batch_size": 2},
        "output_dir": "out",
        **more,
    }


# ---- names -------------------------------------------------------------------------------------------------------


def test_missing_config_file(cli: Any, place: Path) -> None:
    (place / "grpo-math.yaml").write_text("")
    ran = cli("train", "grpo-meth.yaml")
    assert ran.code == 2
    assert "no such config file: grpo-meth.yaml" in ran.err
    assert "'grpo-math.yaml'" in ran.err


def test_missing_data_file(refused: Any, tiny_model: Path) -> None:
    message = refused(sft(tiny_model, dataset="pair.jsonl"))
    assert "pair.jsonl" in message
    assert "pairs.jsonl" in message.split("hint:")[1]


def test_missing_model_folder(refused: Any) -> None:
    assert "./no-model" in refused(sft("./no-model"))


def test_unknown_key(refused: Any) -> None:
    message = refused(sft("m", train={"learning_rat": 1e-3}))
    assert "train.learning_rat: unknown key" in message
    assert "did you mean 'learning_rate'?" in message


def test_unknown_algorithm(refused: Any) -> None:
    message = refused(grpo("m", algo={"name": "gpro"}))
    assert "unknown algorithm 'gpro'" in message
    assert "did you mean 'grpo'?" in message


def test_unknown_task(refused: Any) -> None:
    message = refused(sft("m", task="instruction_folowing"))
    assert "did you mean 'instruction_following'?" in message


def test_unknown_reward(refused: Any, tiny_model: Path) -> None:
    message = refused(grpo(tiny_model, rewards=["lenght"]))
    assert "'lenght'" in message
    assert "did you mean 'length'?" in message


def test_unknown_reward_in_a_dry_run(refused: Any) -> None:
    assert "did you mean 'length'?" in refused(grpo("m", rewards=["lenght"]), "--dry-run")


def test_unknown_backend(refused: Any) -> None:
    message = refused(sft("m", backend="unslot"))
    assert "backend" in message
    assert "'unsloth'" in message


def test_unknown_preset(refused: Any, tiny_model: Path) -> None:
    message = refused(sft(tiny_model, dataset={"name": "pairs.jsonl", "preset": "alpca"}))
    assert "'alpca'" in message
    assert "did you mean 'alpaca'?" in message


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"max_steps": "many"}, ["train.max_steps", "'many'"]),
        ({"learning_rate": -1e-5}, ["train.learning_rate", "greater than 0", "-1e-05"]),
        ({"gradient_checkpointing": [1]}, ["train.gradient_checkpointing"]),
    ],
)
def test_wrong_values(refused: Any, train: dict[str, Any], words: list[str]) -> None:
    message = refused(sft("m", train=train))
    assert all(word in message for word in words), message


def test_all_faults_come_at_once(refused: Any) -> None:
    message = refused(sft("m", train={"learning_rate": -1, "max_steps": 0, "seeed": 1}, backend="tlr"))
    assert "4 settings are wrong" in message
    assert all(key in message for key in ("train.learning_rate", "train.max_steps", "train.seeed", "backend"))


def test_generations_that_do_not_divide_the_batch_show_the_arithmetic(refused: Any) -> None:
    message = refused(grpo("m", algo={"name": "grpo", "num_generations": 3}, train={"per_device_batch_size": 4}))
    assert "algo.num_generations" in message
    assert "4 x steps per generation 1 = 4" in message
    assert "4 / 3 = 1.33" in message


def test_broken_yaml(cli: Any, place: Path) -> None:
    (place / "run.yaml").write_text("task: a\nmodel: {name_or_path: x\n")
    ran = cli("train", "run.yaml")
    assert ran.code == 2
    assert "run.yaml:3" in ran.err


# ---- data --------------------------------------------------------------------------------------------------------


def test_malformed_json_names_file_and_line(refused: Any, place: Path, tiny_model: Path) -> None:
    with open(place / "pairs.jsonl", "a") as file:
        file.write('{"prompt": "a", "completion": \n')
    assert "pairs.jsonl:9" in refused(sft(tiny_model))


def test_empty_data_set(refused: Any, place: Path, tiny_model: Path) -> None:
    (place / "pairs.jsonl").write_text("")
    message = refused(sft(tiny_model))
    assert "pairs.jsonl" in message


def test_missing_column_lists_the_columns_found(refused: Any, place: Path, tiny_model: Path) -> None:
    write_rows(place / "pairs.jsonl", [{"question": "a", "colour": "red"}])
    message = refused(sft(tiny_model))
    assert "question" in message
    assert "colour" in message


def test_missing_reward_column_lists_the_columns_found(refused: Any, place: Path, tiny_model: Path) -> None:
    write_rows(place / "prompts.jsonl", [{"prompt": "a", "colour": "red"}])
    message = refused(grpo(tiny_model, rewards=["math_correctness"]))
    assert "reference" in message
    assert "colour" in message


def test_rows_that_are_all_truncated(refused: Any, place: Path, tiny_model: Path) -> None:
    write_rows(place / "pairs.jsonl", [{"prompt": "x" * 200, "completion": "y"}] * 3)
    message = refused(sft(tiny_model), "model.max_seq_length=32")
    assert "3" in message
    assert "max_seq_length" in message


def test_rows_that_are_fully_masked(refused: Any, place: Path, tiny_model: Path) -> None:
    write_rows(place / "pairs.jsonl", [{"messages": [{"role": "user", "content": "Say 1"}]}] * 3)
    message = refused(sft(tiny_model, task="chat_completion"))
    assert "3" in message
    assert "assistant" in message


def test_prompts_that_are_all_too_long(refused: Any, place: Path, tiny_model: Path) -> None:
    write_rows(place / "prompts.jsonl", [{"prompt": "x" * 200}] * 3)
    assert "max_prompt_length" in refused(grpo(tiny_model))


# ---- rewards -----------------------------------------------------------------------------------------------------


def test_a_reward_that_raises_is_named_with_its_row(refused: Any, place: Path, tiny_model: Path) -> None:
    (place / "mine.py").write_text("def bad(text, reference):\n    return 1 / (int(reference) - 0)\n")
    write_rows(place / "prompts.jsonl", [{"prompt": "Say 0", "reference": "0"}] * 4)
    message = refused(grpo(tiny_model, rewards=["mine.py:bad"]))
    assert "bad" in message
    assert "ZeroDivisionError" in message
    assert "row" in message


def test_a_reward_file_that_is_not_there(refused: Any, place: Path) -> None:
    (place / "mine.py").write_text("def bad(text):\n    return 1.0\n")
    assert "mine.py" in refused(grpo("m", rewards=["mime.py:bad"]), "--dry-run")
    assert "did you mean 'bad'?" in refused(grpo("m", rewards=["mine.py:bda"]), "--dry-run")


# ---- the output folder -------------------------------------------------------------------------------------------


def test_a_finished_run_is_never_overwritten(refused: Any, place: Path, tiny_model: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "manifest.json").write_text(json.dumps({"status": "finished"}))
    message = refused(sft(tiny_model))
    assert "holds a finished run" in message
    assert "output_dir" in message


def test_an_output_folder_that_is_a_file(refused: Any, place: Path, tiny_model: Path) -> None:
    (place / "out").write_text("mine")
    assert "is a file" in refused(sft(tiny_model))


def test_no_write_permission(refused: Any, place: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write everywhere, so the system's answer is put in its place
        refuse_writes(monkeypatch, errno.EACCES)
    else:
        (place / "locked").mkdir(mode=0o555)
    message = refused(sft(tiny_model, output_dir="locked/out" if os.geteuid() else "out"))
    assert "no permission to write" in message


def test_no_space_left(refused: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_writes(monkeypatch, errno.ENOSPC)
    assert "no space left" in refused(sft(tiny_model))


def refuse_writes(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Every flush of a file to the disk fails as it does on a full or locked disk."""

    def fsync(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


def test_nothing_to_resume_from(refused: Any, tiny_model: Path) -> None:
    message = refused(sft(tiny_model), "--resume")
    assert "no checkpoint" in message


# ---- eval --------------------------------------------------------------------------------------------------------


def test_eval_of_an_unknown_kind(refused: Any, tiny_model: Path) -> None:
    task = {"name": "t", "kind": "perplexty", "dataset": "pairs.jsonl"}
    message = refused({"model": {"name_or_path": str(tiny_model)}, "tasks": [task]}, command="eval")
    assert "perplexity" in message


def test_eval_of_a_missing_file(refused: Any, tiny_model: Path) -> None:
    task = {"name": "t", "kind": "perplexity", "dataset": "nowhere.jsonl"}
    assert "nowhere.jsonl" in refused({"model": {"name_or_path": str(tiny_model)}, "tasks": [task]}, command="eval")
