"""The command `aligntune check`, what a terminal shows, the quick checks of `train`, and the smoke run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from aligntune.preflight.show import render, visible
from aligntune.preflight.trained import TrainedRow
from aligntune.preflight.verdict import Report, Verdict

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `sft.yaml` over clean rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNTUNE_CACHE", str(tmp_path / "cache"))
    write(tmp_path, runs.plain("sft", tiny_model, tmp_path, train__learning_rate=1e-5))
    return tmp_path


def write(folder: Path, values: dict[str, Any], name: str = "sft.yaml") -> None:
    (folder / name).write_text(yaml.safe_dump(values), encoding="utf-8")


def test_exit_codes_and_json(cli: Any, folder: Path) -> None:
    ran = cli("check", "sft.yaml", "--json")
    assert ran.code == 0
    assert ran.json["counts"]["fail"] == 0
    assert {v["name"] for v in ran.json["verdicts"]} > {"terminator", "memory", "batch", "learning-rate"}
    keys = {s["key"]: s["source"] for s in ran.json["settings"]}
    assert keys["train.max_steps"] == "sft.yaml"
    row = ran.json["rows"][0]
    assert len(row["ids"]) == len(row["trained"]) == len(row["tokens"])
    ran = cli("check", "sft.yaml", "train.learning_rate=1", "--rows", "0")
    assert ran.code == 0
    assert "warn  learning-rate" in ran.out
    assert "in the loss;" not in ran.out
    assert "[+" not in ran.out
    assert cli("check", "sft.yaml", "train.learning_rate=1", "--strict").code == 1
    ran = cli("check", "sft.yaml", "train.warmup_steps=9")
    assert ran.code == 1
    assert "failed: warm-up" in ran.out
    assert cli("check").code == 2
    assert cli("check", "sft.yaml", "train.lr=1").code == 2
    assert cli("check", "sft.yaml", "--keep").code == 2


def test_verbose_lists_every_value_with_its_source(cli: Any, folder: Path) -> None:
    ran = cli("check", "sft.yaml", "train.seed=5", "-v")
    assert re.search(r"train\.seed +5 +<- override", ran.out)
    assert re.search(r"train\.max_grad_norm +1\.0 +<- default \(Transformers\)", ran.out)


def example() -> Report:
    tokens = ["<s>", "Say", " yes", "\n", "Yes", ".", "<e>"]
    row = TrainedRow(4, "row", list(range(7)), [False] * 4 + [True] * 3, tokens)
    long = Verdict("learning-rate", "config", "warn", "word " * 40, ["number " * 30], "fix it " * 30)
    return Report([long, Verdict("a-check", "rows", "pass", "fine")], [row])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_keep_to_the_width(width: int) -> None:
    for color in (False, True):
        lines = ANSI.sub("", render(example(), width=width, color=color, special=["<s>", "<e>"])).splitlines()
        assert max(map(len, lines)) <= width


def test_without_colour_marks_show_what_is_trained() -> None:
    text = render(example(), width=80, symbols=False)
    assert not ANSI.search(text)
    assert "<s>Say yes\\n\n    [+Yes.<e>+]" in text
    assert text.isascii()


def test_colour_tells_the_mask_and_special_tokens() -> None:
    text = render(example(), width=80, color=True, special=["<s>", "<e>"])
    assert "\x1b[35m\x1b[1m<s>" in text
    assert "\x1b[33m\x1b[1m<e>" in text
    assert re.search(r"\x1b\[9?2mYes", text)
    assert ANSI.sub("", text).count("[+") == 0


def test_tokens_show_what_cannot_be_seen() -> None:
    assert visible("a\tb\n", True) == "a→b⏎\n"
    assert visible("é\x00", False) == "\\xe9\\x00"


def test_long_rows_are_shown_by_their_ends() -> None:
    row = TrainedRow(0, "row", [0] * 1000, [True] * 1000, ["a"] * 1000)
    assert "... 760 tokens ..." in render(Report([], [row]), width=80).replace("\n    ", "")


def test_training_stops_at_a_failure_and_notes_warnings(cli: Any, folder: Path) -> None:
    ran = cli("train", "sft.yaml", "train.warmup_steps=4")
    assert ran.code == 2
    assert "warm-up takes 4 steps, and the run has 4" in ran.err
    assert "--no-check" in ran.err
    assert not (folder / "out").exists()
    rows = runs.SFT_ROWS + runs.SFT_ROWS[:3]
    runs.write_rows(folder / "sft.jsonl", rows)
    ran = cli("train", "sft.yaml", "--json")
    assert ran.code == 0
    assert any("check: duplicates: 3 of 27" in note for note in ran.json["notes"])


def test_checks_can_be_left_out(cli: Any, folder: Path) -> None:
    ran = cli("train", "sft.yaml", "train.warmup_steps=4", "train.max_steps=1", "--no-check", "--json")
    assert ran.code == 0
    assert not any("check:" in note for note in ran.json["notes"])


def test_the_held_out_rows_must_not_be_trained_on(cli: Any, folder: Path) -> None:
    ran = cli("train", "sft.yaml", "evaluation.dataset=sft.jsonl")
    assert ran.code == 2
    assert "train-in-eval: 24 of 24 (100%)" in ran.err


@pytest.mark.parametrize("kind", ["sft", "grpo", "kto"])
def test_a_smoke_run_goes_through_every_stage(
    kind: str, cli: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, runs.plain(kind, tiny_model, tmp_path, train__warmup_steps=2), "run.yaml")
    ran = cli("train", "run.yaml", "--smoke", "--json")
    assert ran.code == 0
    found = {v["name"]: v["status"] for v in ran.json["verdicts"]}
    expected = {"smoke-load", "smoke-train", "smoke-checkpoint", "smoke-evaluate", "smoke-reload"}
    assert set(found) == expected | ({"smoke-reward"} if kind == "grpo" else set())
    assert {v for k, v in found.items() if k != "smoke-reward"} == {"pass"}
    assert not (tmp_path / "out").exists()
    assert ran.json["smoke_folder"] is None


def test_a_smoke_run_takes_the_longest_rows_and_may_be_kept(
    cli: Any, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from aligntune.preflight import smoke_run as module

    rows = [*runs.SFT_ROWS, {"prompt": "Say it all", "completion": "word " * 9}]
    runs.write_rows(folder / "sft.jsonl", rows)
    seen = []
    longest = module._longest_first
    monkeypatch.setattr(module, "_longest_first", lambda t: (longest(t), seen.append(t._train_data.dataset))[0])
    ran = cli("train", "sft.yaml", "--smoke", "--keep", "--json")
    assert len(seen[0]) == 4
    assert "word" in str(seen[0][0])
    assert Path(ran.json["smoke_folder"], "run", "manifest.json").is_file()
    shutil.rmtree(ran.json["smoke_folder"])


def test_a_smoke_run_names_the_stage_that_fails(cli: Any, folder: Path, tiny_model: Path) -> None:
    (folder / "bad.py").write_text("def score(text):\n    return 1 / 0\n")
    write(folder, runs.plain("grpo", tiny_model, folder, rewards=["bad.py:score"]), "run.yaml")
    ran = cli("train", "run.yaml", "--smoke")
    assert ran.code == 1
    assert "fail  smoke-train" in ran.out
    assert cli("train", "run.yaml", "--smoke", "--no-check").code == 2
