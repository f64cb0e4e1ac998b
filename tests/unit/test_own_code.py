"""Definitions in a user's own file: algorithms, tasks and kinds of evaluation named as `file.py:Class`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.algorithms.base import ALGORITHMS, TASKS, get_algorithm, get_task
from aligntune.core.config import build_config, load_config
from aligntune.core.config.io import dump_config, effective
from aligntune.errors import ConfigurationError

MINE = '''
from pydantic import PositiveFloat

from aligntune.algorithms import DPO, Schema, Supervised, algorithm, task
from aligntune.eval import EvalKind


@algorithm("mine", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
class Mine(DPO):
    """DPO under another name."""

    sharpness: PositiveFloat = 1.0
    """What it is for (ours)."""


@task("my_task", data=Schema.PROMPT_COMPLETION)
class MyTask(Supervised):
    """A task under another name."""


class Undecorated(DPO):
    """Not registered."""


class Kind(EvalKind):
    """A kind of evaluation."""

    options = frozenset({"max_new_tokens"})

    def items(self, rows, ids, settings, subject):
        return []

    def metrics(self, settings, items):
        return []


def function(text: str) -> float:
    return 0.5
'''


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    yield path
    ALGORITHMS.remove("mine")
    TASKS.remove("my_task")


def raw(file: Path, **changes: Any) -> dict[str, Any]:
    return runs.plain("dpo", Path("model"), file.parent, algo={"name": f"{file}:Mine", "sharpness": 2.0}, **changes)


def test_an_algorithm_by_its_place(file: Path) -> None:
    config = build_config(raw(file))
    assert (config.algorithm.key, config.algorithm.sharpness, config.algorithm.beta) == ("mine", 2.0, 0.1)
    assert config.algorithm.place == f"{file}:Mine"


def test_what_is_written_down_names_the_place_and_loads_again(file: Path) -> None:
    config = build_config(raw(file))
    assert effective(config)["algo"]["name"] == f"{file}:Mine"
    text = dump_config(config)
    ALGORITHMS.remove("mine")
    path = file.parent / "written.yaml"
    path.write_text(text)
    again = load_config(path)
    assert again == config


def test_a_relative_place_is_written_absolute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    config = build_config(runs.plain("dpo", Path("model"), file.parent, algo="mine.py:Mine"))
    assert effective(config)["algo"]["name"] == f"{file}:Mine"


def test_its_faults_are_told_as_those_of_ours(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"algo\.sharpnes: unknown key"):
        build_config({**raw(file), "algo": {"name": f"{file}:Mine", "sharpnes": 1}})
    with pytest.raises(ConfigurationError, match=r"algo\.sharpness: .*greater than 0"):
        build_config({**raw(file), "algo": {"name": f"{file}:Mine", "sharpness": 0}})


def test_the_factory_takes_its_parameters(file: Path) -> None:
    from aligntune import create_rl_trainer

    trainer = create_rl_trainer(
        algorithm=f"{file}:Mine", sharpness=3.0, model_name="model", dataset_name="pairs.jsonl", output_dir="out"
    )
    assert trainer.config.algorithm.sharpness == 3.0
    assert type(trainer).__name__ == "TRLMINETrainer"


def test_an_edited_file_takes_the_place_of_the_old_one(file: Path) -> None:
    old = get_algorithm(f"{file}:Mine")
    file.write_text(MINE.replace("PositiveFloat = 1.0", "PositiveFloat = 5.0"))
    new = get_algorithm(f"{file}:Mine")
    assert (old().sharpness, new().sharpness) == (1.0, 5.0)
    assert get_algorithm("mine") is new


def test_another_file_may_not_take_the_name(file: Path) -> None:
    get_algorithm(f"{file}:Mine")
    other = file.with_name("other.py")
    other.write_text(MINE)
    with pytest.raises(ConfigurationError, match="algorithm 'mine' is registered already") as refused:
        get_algorithm(f"{other}:Mine")
    assert "replace" not in refused.value.hint  # the decorator takes no such word


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py", "names no class"),
        ("mine.py:Min", r"has no function 'Min'.*\n?.*did you mean 'Mine'"),
        ("min.py:Mine", r"does not exist.*\n?.*did you mean .*mine\.py"),
        ("mine.py:Undecorated", r"must be a class that is decorated with @algorithm"),
        ("mine.py:function", "must be a class that is decorated"),
        ("mine.py:MyTask", r"is no algorithm.*\n?.*write `task:`"),
    ],
)
def test_wrong_places_are_told(file: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_algorithm(str(file.parent / name))
    import re

    assert re.search(said, f"{caught.value.message}\n{caught.value.hint}"), caught.value


def test_a_task_by_its_place(file: Path) -> None:
    config = build_config(runs.plain("sft", Path("model"), file.parent, task=f"{file}:MyTask"))
    assert config.algorithm.key == "my_task"
    assert effective(config)["task"]["name"] == f"{file}:MyTask"
    with pytest.raises(ConfigurationError, match="is no task"):
        get_task(f"{file}:Mine")


def test_a_class_of_a_package_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        found = get_algorithm("a_users_package.mine:Mine")
        assert found.place == "a_users_package.mine:Mine"
        assert build_config({**raw(tmp_path / "x"), "algo": "mine"}).algorithm.place == found.place
    finally:
        ALGORITHMS.remove("mine")
        TASKS.remove("my_task")
        sys.modules.pop("a_users_package.mine")


def test_a_class_inside_a_function_has_no_place() -> None:
    from aligntune.algorithms import DPO, Schema, algorithm

    @algorithm("fleeting", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
    class Fleeting(DPO):
        """Nobody else can find it."""

    ALGORITHMS.remove("fleeting")
    assert Fleeting.place == ""
    assert get_algorithm("dpo").place == ""


def test_the_manifest_has_the_hash_of_the_file(file: Path) -> None:
    from aligntune.utils.manifest import file_sha256, own_code

    assert own_code(build_config(raw(file))) == {f"{file}:Mine": file_sha256(file)}
    assert own_code(build_config(runs.plain("dpo", Path("model"), file.parent))) == {}


def test_a_stage_names_it_and_notices_a_change(file: Path) -> None:
    from aligntune.errors import EnvironmentError
    from aligntune.stages import make_plan
    from aligntune.stages.record import identity

    runs.write_rows(file.parent / "dpo.jsonl", runs.PAIRS)
    config = {k: v for k, v in raw(file).items() if k != "output_dir"}
    config["model"] = {"name_or_path": "hub/model"}
    plan = {"output_dir": str(file.parent / "out"), "stages": [{"name": "a", "kind": "train", "config": config}]}
    before = identity(make_plan(plan)["a"], {})
    assert str(file) in before["files"]
    file.write_text(MINE + "\n# changed\n")
    assert identity(make_plan(plan)["a"], {})["files"] != before["files"]
    config["algo"] = f"{file.with_name('gone.py')}:Mine"
    with pytest.raises((ConfigurationError, EnvironmentError), match=r"gone\.py"):
        make_plan(plan)


def test_a_kind_of_evaluation_by_its_place(file: Path) -> None:
    from aligntune.eval import EvalRegistry
    from aligntune.eval.config import build_eval_config

    task = {"name": "t", "kind": f"{file}:Kind", "dataset": "rows.jsonl"}
    given = {"model": {"name_or_path": "model"}, "tasks": [task]}
    assert build_eval_config(given).tasks[0].kind == f"{file}:Kind"
    assert EvalRegistry.get(f"{file}:Kind").__name__ == "Kind"
    task["num_samples"] = 3
    with pytest.raises(ConfigurationError, match=r"num_samples: has no effect in the kind"):
        build_eval_config(given)
    del task["num_samples"]
    for name, said in (("Mine", "is no kind of evaluation"), ("Kin", "did you mean 'Kind'")):
        task["kind"] = f"{file}:{name}"
        with pytest.raises(ConfigurationError, match=said):
            build_eval_config(given)


def test_a_run_measures_it_while_it_trains(file: Path) -> None:
    task = {"name": "t", "kind": f"{file}:Kind", "dataset": "rows.jsonl"}
    config = build_config(raw(file, evaluation__tasks=[task], evaluation__max_new_tokens=7))
    from aligntune.eval.in_training import _eval_config

    assert _eval_config(config, config.evaluation.tasks).tasks[0].max_new_tokens == 7
