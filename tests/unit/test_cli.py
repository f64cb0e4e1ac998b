"""The command line: what it prints and where, exit codes, suggestions, flags, --json, recipes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligntune import errors
from aligntune.cli import eval_run as eval_command
from aligntune.cli import info, train
from aligntune.cli.console import Settings, split_arguments, table
from aligntune.core.config import build_config
from aligntune.recipes import list_recipes

SFT = {"task": "instruction_following", "model": {"name_or_path": "m"}, "dataset": "d.jsonl"}
GRPO = {
    "algo": {"name": "grpo", "num_generations": 4},
    "model": {"name_or_path": "m"},
    "datasets": ["d.jsonl"],
    "rewards": ["length"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(SFT))
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(GRPO))
    return tmp_path


def test_help_lists_every_command_and_only_those(cli: Any) -> None:
    ran = cli("--help")
    listed = [line.split()[0] for line in ran.out.split("Commands:")[1].splitlines() if line.strip()]
    assert ran.code == 0
    assert listed == [
        "check", "compare", "config", "data", "diagnose", "diff", "eval", "info", "quickstart", "recipes", "report",
        "reproduce", "rewards", "run", "train",
    ]  # fmt: skip


def test_no_command_prints_the_help(cli: Any) -> None:
    ran = cli()
    assert ran.code == 2
    assert "Commands:" in ran.out


@pytest.mark.parametrize(
    ("line", "guess"),
    [(["trian"], "train"), (["recipe"], "recipes"), (["recipes", "lst"], "list"), (["config", "shema"], "schema")],
)
def test_a_misspelt_command_names_the_nearest(cli: Any, line: list[str], guess: str) -> None:
    ran = cli(*line)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: unknown command")
    assert f"did you mean '{guess}'?" in ran.err


def test_a_misspelt_option_names_the_nearest(cli: Any) -> None:
    ran = cli("train", "--learning-rat", "1")
    assert ran.code == 2
    assert "--learning-rate" in ran.err
    assert "aligntune train --help" in ran.err


def test_json_errors_stand_on_standard_output(cli: Any) -> None:
    ran = cli("train", "nowhere.yaml", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "ConfigurationError"
    assert ran.json["error"]["exit_code"] == 2
    assert "nowhere.yaml" in ran.json["error"]["message"]
    assert ran.err.startswith("error: ")


def test_usage_errors_are_json_too(cli: Any) -> None:
    assert cli("--json", "train", "--max-steps", "many").json["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("wrong", hint="mend it"), 2),
        (errors.ValidationError("wrong", hint="mend it"), 2),
        (errors.RewardError("wrong", hint="mend it"), 2),
        (errors.EnvironmentError("wrong", hint="mend it"), 3),
        (errors.TrainingError("wrong", hint="mend it"), 1),
    ],
)
def test_exit_codes(cli: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    monkeypatch.setattr(info, "_device", _raise(error))
    ran = cli("info")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err == "error: wrong\n  hint: mend it\n"


def test_an_unexpected_error_is_one_line_and_debug_shows_the_rest(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_device", _raise(KeyError("left\nright")))
    ran = cli("info")
    assert ran.code == 1
    assert ran.err.splitlines()[0] == "error: unexpected KeyError: 'left\\nright'"
    assert "--debug" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in cli("--debug", "info").err


def test_an_interrupt_is_130_and_keeps_its_hint(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_device", _raise(KeyboardInterrupt("go on with --resume")))
    ran = cli("info")
    assert ran.code == 130
    assert ran.err == "error: stopped\n  hint: go on with --resume\n"


def _raise(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def test_a_closed_pipe_is_no_traceback() -> None:
    line = [sys.executable, "-m", "aligntune", "config", "schema"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_json_keeps_library_prints_out_of_standard_output(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy() -> dict[str, str]:
        print("a library speaks")
        os.write(1, b"a child process speaks\n")
        return {"name": "none"}

    monkeypatch.setattr(info, "_device", noisy)
    ran = cli("info", "--json")
    assert ran.json["device"] == {"name": "none"}
    assert "a library speaks" in ran.err
    assert "a child process speaks" in ran.err


def test_info_tells_what_there_is(cli: Any) -> None:
    data = cli("info", "--json").json
    assert data["packages"]["trl"]
    assert data["device"]["device"] in ("cpu", "cuda", "mps")
    assert data["backends"]["trl"]["available"] is True
    assert {"dpo", "grpo", "instruction_following"} <= set(data["algorithms"])
    text = cli("info").out
    assert "grpo" in text
    assert "math_correctness" in text


# ---- train: what the line resolves to ---------------------------------------------------------------------------


def test_dry_run_prints_the_resolved_config_and_writes_nothing(cli: Any, folder: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    ran = cli("train", "sft.yaml", "--dry-run", "train.max_steps=7")
    assert ran.code == 0
    loaded = yaml.safe_load(ran.out)
    assert loaded["train"]["max_steps"] == 7
    assert loaded["train"]["learning_rate"] == 2e-5
    assert build_config(loaded) == build_config({**SFT, "train": {"max_steps": 7}})
    assert "trainer: TRLSFTTrainer" in ran.out
    assert sorted(p.name for p in folder.iterdir()) == before


def test_dry_run_refuses_what_the_backend_would_refuse(cli: Any, folder: Path) -> None:
    pytest.importorskip("torch")
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    ran = cli("train", "sft.yaml", "--dry-run", "backend=unsloth", "task.packing=true")
    assert ran.code == 2
    assert "task.packing has no effect on Unsloth's CPU backend" in ran.err


def test_dry_run_json(cli: Any, folder: Path) -> None:
    data = cli("train", "grpo.yaml", "--dry-run", "--json").json
    assert data["config"]["algo"]["num_generations"] == 4
    assert data["batch"]["prompts_per_step_and_device"] == 2
    assert data["arguments"]["num_generations"] == 4


def test_flags_overrides_and_file_give_one_config(folder: Path) -> None:
    flags = {"max_steps": 5, "learning_rate": 1e-4, "output_dir": "o", "seed": 1, "batch_size": 4}
    by_flags = train.build(
        None, [], {"task_type": "instruction_following", "model_name": "m", "dataset_name": "d.jsonl", **flags}
    )
    overrides = ["train.max_steps=5", "train.learning_rate=1e-4", "output_dir=o", "train.seed=1"]
    by_overrides = train.build("sft.yaml", [*overrides, "train.per_device_batch_size=4"], {})
    by_both = train.build("sft.yaml", [], flags)
    assert by_flags == by_overrides == by_both
    assert by_both.train.per_device_batch_size == 4


def test_an_override_beats_a_flag_and_a_flag_beats_the_file(folder: Path) -> None:
    (folder / "sft.yaml").write_text(yaml.safe_dump({**SFT, "train": {"max_steps": 1, "seed": 1}}))
    assert train.build("sft.yaml", [], {"max_steps": 2}).train.max_steps == 2
    config = train.build("sft.yaml", ["train.max_steps=3"], {"max_steps": 2})
    assert (config.train.max_steps, config.train.seed) == (3, 1)


def test_rl_from_flags_alone(cli: Any, folder: Path) -> None:
    line = ["train", "--algorithm", "grpo", "--model", "m", "--dataset", "d.jsonl", "--reward", "length"]
    config = cli(*line, "--reward", "regex", "rewards.1.params={pattern: a}", "--dry-run", "--json").json["config"]
    assert [r["type"] for r in config["rewards"]] == ["length", "regex"]
    assert config["datasets"][0]["name"] == "d.jsonl"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["train"], ["nothing says what to train", "aligntune recipes list"]),
        (["train", "sft.yaml", "more"], ["'more' is not an override", "train.max_steps=20"]),
        (["train", "sft.yaml", "--algorithm", "dpo"], ["sft.yaml has a task"]),
        (["train", "--algorithm", "dpo", "--type", "chat_completion"], ["the command line has a task"]),
        (["train", "--type", "instruction_following", "--dataset", "d"], ["model", "is missing"]),
        (["train", "sft.yaml", "--reward", "length"], ["rewards"]),
    ],
)
def test_contradictions_on_the_line(cli: Any, folder: Path, line: list[str], words: list[str]) -> None:
    ran = cli(*line)
    assert (ran.code, ran.out) == (2, "")
    assert all(word in ran.err for word in words), ran.err


@pytest.mark.parametrize(
    ("args", "done"),
    [
        (["--resume", "run.yaml"], ["--resume=latest", "run.yaml"]),
        (["run.yaml", "--resume"], ["run.yaml", "--resume=latest"]),
        (["--resume", "train.seed=1"], ["--resume=latest", "train.seed=1"]),
        (["--resume", "--json"], ["--resume=latest", "--json"]),
        (["--resume", "latest"], ["--resume", "latest"]),
        (["--resume", "out/checkpoint-3"], ["--resume", "out/checkpoint-3"]),
        (["--resume=out/checkpoint-3"], ["--resume=out/checkpoint-3"]),
    ],
)
def test_resume_may_stand_without_a_value(args: list[str], done: list[str]) -> None:
    assert train._complete_resume(args) == done


class _Interrupted:
    notes: list[str] = []
    resume_hint = "go on with the same command and --resume (checkpoint: out/checkpoint-5)"

    def train(self, resume: str | None = None) -> Any:
        raise KeyboardInterrupt


def test_a_stopped_run_says_how_to_go_on(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligntune.core import backend_factory

    monkeypatch.setattr(backend_factory, "create_trainer", lambda config: _Interrupted())
    ran = cli("train", "sft.yaml", "--no-check")
    assert ran.code == 130
    assert "out/checkpoint-5" in ran.err


# ---- eval --------------------------------------------------------------------------------------------------------

EVAL = {
    "model": {"name_or_path": "m"},
    "tasks": [
        {"name": "a", "kind": "perplexity", "dataset": "d.jsonl"},
        {"name": "b", "kind": "exact_match", "dataset": "d.jsonl"},
    ],
}


def test_eval_from_flags_is_the_file_with_one_task(folder: Path) -> None:
    (folder / "eval.yaml").write_text(yaml.safe_dump({**EVAL, "tasks": EVAL["tasks"][1:], "seed": 7}))
    overrides = ["tasks.0.name=b", "tasks.0.temperature=0.5"]
    flags = {"model": "m", "kind": "exact_match", "dataset": "d.jsonl", "seed": 7, "max_new_tokens": 9}
    by_flags = eval_command.build(None, overrides, flags, None)
    by_file = eval_command.build("eval.yaml", [*overrides, "tasks.0.max_new_tokens=9"], {}, None)
    assert by_flags == by_file
    assert by_file.tasks[0].temperature == 0.5


def test_eval_chooses_tasks_and_model(folder: Path) -> None:
    (folder / "eval.yaml").write_text(yaml.safe_dump(EVAL))
    config = eval_command.build("eval.yaml", [], {"model": "other"}, ["b"])
    assert [t.name for t in config.tasks] == ["b"]
    assert config.model.name_or_path == "other"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["eval"], ["--model, --kind, --dataset missing"]),
        (["eval", "--model", "m", "--kind", "perplexity"], ["--dataset missing"]),
        (["eval", "eval.yaml", "--tasks", "c"], ["no task 'c'", "a, b"]),
        (["eval", "eval.yaml", "--max-samples", "3"], ["--max-samples", "tasks.0.max_samples=..."]),
        (["eval", "eval.yaml", "tasks.0.kind=perplexty"], ["tasks.0.kind", "did you mean 'perplexity'?"]),
    ],
)
def test_eval_faults_on_the_line(cli: Any, folder: Path, line: list[str], words: list[str]) -> None:
    (folder / "eval.yaml").write_text(yaml.safe_dump(EVAL))
    ran = cli(*line)
    assert (ran.code, ran.out) == (2, "")
    assert all(word in ran.err for word in words), ran.err


# ---- the other commands ------------------------------------------------------------------------------------------


def test_recipes_list_show_copy(cli: Any, folder: Path) -> None:
    names = [r["name"] for r in cli("recipes", "list", "--json").json]
    assert names == [r.name for r in list_recipes()]
    assert names
    for row in cli("recipes", "list", "--json").json:
        assert row["summary"], row
    assert names[0] in cli("recipes", "list").out
    assert cli("recipes", "show", names[0]).out.startswith("#")
    copied = cli("recipes", "copy", names[0], "mine.yaml")
    assert copied.code == 0
    assert (folder / "mine.yaml").is_file()
    again = cli("recipes", "copy", names[0], "mine.yaml")
    assert again.code == 2
    assert "--force" in again.err
    assert cli("recipes", "copy", names[0], "mine.yaml", "--force").code == 0


def test_every_recipe_copied_alone_is_the_same_run(cli: Any, folder: Path) -> None:
    from aligntune.core.config import load_config

    for recipe in list_recipes():
        if not recipe.trains:
            continue
        assert cli("recipes", "copy", recipe.name, "copied.yaml", "--force").code == 0
        assert load_config("copied.yaml") == load_config(recipe.path)


def test_an_unknown_recipe_names_the_nearest(cli: Any) -> None:
    name = list_recipes()[0].name
    ran = cli("recipes", "show", name[:-1])
    assert ran.code == 2
    assert f"'{name}'" in ran.err


def test_rewards_list_and_show(cli: Any) -> None:
    listed = {r["name"]: r for r in cli("rewards", "list", "--json").json}
    assert {"length", "math_correctness", "answer_format", "think_format", "regex"} <= set(listed)
    shown = cli("rewards", "show", "length", "--json").json
    assert shown["parameters"]["min_length"] == 10
    ran = cli("rewards", "show", "lenght")
    assert ran.code == 2
    assert "did you mean 'length'?" in ran.err


def test_the_schema_command_prints_json_either_way(cli: Any) -> None:
    assert json.loads(cli("config", "schema").out) == cli("config", "schema", "--json").json


def test_report_of_a_folder_that_is_no_run(cli: Any, folder: Path) -> None:
    ran = cli("report", "nowhere")
    assert ran.code == 2
    assert "nowhere" in ran.err


# ---- small parts -------------------------------------------------------------------------------------------------


def test_split_arguments(folder: Path) -> None:
    (folder / "lr=3.yaml").write_text("")
    assert split_arguments(["a.yaml", "x=1"]) == ("a.yaml", ["x=1"])
    assert split_arguments(["x=1", "y=2"]) == (None, ["x=1", "y=2"])
    assert split_arguments(["lr=3.yaml", "y=2"]) == ("lr=3.yaml", ["y=2"])
    assert split_arguments([]) == (None, [])


def test_shared_options_are_found_anywhere_before_a_double_dash() -> None:
    assert Settings.read(["train", "--json", "-v"]) == Settings(json=True, verbose=True)
    assert Settings.read(["train", "--", "--json"]) == Settings()


def test_table_aligns() -> None:
    assert table([["a", 1], ["bcd", 22]], ["k", "v"]) == "k    v\n---  --\na    1\nbcd  22"


def test_no_colour_without_a_terminal_or_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Settings().color is True
    monkeypatch.setenv("NO_COLOR", "1")
    assert Settings().color is False


def test_quickstart_takes_a_free_folder(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligntune.quickstart import story

    def told(out: str, *, fast: bool, seed: int) -> tuple[dict[str, Any], str]:
        Path(out).mkdir(parents=True)
        return {"out": out, "fast": fast, "seed": seed}, f"report in {out}"

    monkeypatch.setattr(story, "run_quickstart", told)
    assert cli("quickstart").out == "report in runs/quickstart\n"
    assert cli("quickstart", "--fast", "--seed", "2", "--json").json == {
        "out": "runs/quickstart-2",
        "fast": True,
        "seed": 2,
    }
    assert cli("quickstart", "--out", "mine").out == "report in mine\n"
    assert cli("quickstart", "--seed", "-1").code == 2
