"""`diff` and `reproduce`: where curves part, what differs, in which order, and what a repeated run is told."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from aligntune.diagnosis import diff_runs, reproduce
from aligntune.diagnosis import reproduction as reproducing
from aligntune.diagnosis.curves import compare, finals, relative
from aligntune.diagnosis.differences import Difference, differences, flat, rank
from aligntune.diagnosis.stored import read_stored
from aligntune.errors import ConfigurationError, EnvironmentError, TrainingError, ValidationError
from aligntune.utils import manifest


def rows(count: int = 20, **changes: Any) -> list[dict[str, Any]]:
    made = [
        {"step": i, "epoch": i / 10, "loss": 2.0 / i, "grad_norm": 1.0 + i, "time": i * 1.5} for i in range(1, count)
    ]
    for key, (step, value) in changes.items():
        made[step - 1][key] = value
    return made


def test_equal_streams_are_identical_whatever_their_clocks_say() -> None:
    other = [{**row, "time": random.random(), "step_time": 3.0, "tokens_per_second": 7} for row in rows()]
    found = compare(rows(), other)
    assert found.identical
    assert found.first_bit is None
    assert found.steps == 19
    assert found.values == 38


def test_the_last_bit_is_noticed_and_counts_as_rounding() -> None:
    found = compare(rows(), rows(loss=(7, math.nextafter(2.0 / 7, 1))))
    assert (found.first_bit, found.first_step) == (7, None)
    assert not found.identical
    assert 0 < found.largest < 1e-15
    assert (found.largest_step, found.largest_metric) == (7, "loss")


def test_where_curves_part_beyond_rounding() -> None:
    b = rows()
    b[4]["grad_norm"] *= 1 + 1e-6  # rounding
    for row in b[9:]:
        row["loss"] *= 1.01
    found = compare(rows(), b)
    assert (found.first_bit, found.first_step, found.first_metric, found.at_start) == (5, 10, "loss", False)
    assert found.largest == pytest.approx(0.01 / 1.01)
    assert compare(rows(), b, tolerance=0.02).first_step is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1.0, 1.0, 0.0),
        (0.0, -0.0, 0.0),
        (math.nan, math.nan, 0.0),
        (math.nan, 1.0, math.inf),
        (math.inf, math.inf, 0.0),
        (2.0, 1.0, 0.5),
        (1e-9, 0.0, 1e-3),
    ],
)
def test_relative_difference(a: float, b: float, expected: float) -> None:
    assert relative(a, b) == pytest.approx(expected)
    assert relative(b, a) == relative(a, b)


def test_missing_steps_and_metrics_are_named() -> None:
    found = compare(rows(20), [{**row, "kl": 0.1} for row in rows(12)])
    assert found.only_a == list(range(12, 20))
    assert found.only_b == []
    assert found.names == ["kl"]
    assert not found.identical
    assert not found.complete


def test_not_a_number_in_both_is_equal_and_in_one_is_not() -> None:
    assert compare(rows(loss=(3, "NaN")), rows(loss=(3, "NaN"))).identical
    assert compare(rows(loss=(3, "NaN")), rows()).first_step == 3


def test_final_values_put_evaluation_and_loss_first() -> None:
    a = [{"step": 1, "grad_norm": 1.0, "loss": 2.0}, {"step": 1, "eval_nll": 3.0}]
    assert [row["metric"] for row in finals(a, a)] == ["eval_nll", "loss", "grad_norm"]


# ---- manifests ------------------------------------------------------------------------------------------------


def entries(**changes: Any) -> dict[str, Any]:
    """A manifest with dotted keys (`__` for the dot) changed."""
    made: dict[str, Any] = {
        "config": {"train": {"seed": 1, "learning_rate": 1e-4}, "model": {"name_or_path": "m"}, "output_dir": "a"},
        "model": {"weights_sha256": "w"},
        "tokenizer": {"sha256": "t", "chat_template_sha256": "c", "pad_token": "p"},
        "datasets": [{"content_hash": "d", "rows": 8}],
        "rewards": {"r": {"source_sha256": "s"}},
        "own_code": {"mine.py:Mine": "a"},
        "packages": {"torch": "2.0", "rich": "1"},
        "patch_fingerprint": {"hash": "f", "symbols": 3, "foreign": []},
        "git": {"commit": "g", "diff_sha256": None},
        "system": {"processor": "x", "python": "3.11"},
        "device": {"threads": 1, "device": "cpu"},
        "environment": {"OMP_NUM_THREADS": "1"},
        "data_order": {"sha256": "o"},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        at: Any = made
        for step in path:
            at = at[int(step) if step.isdigit() else step]
        at[last] = value
    return made


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"config__train__seed": 2}, "seed", "train.seed"),
        ({"config__train__learning_rate": 1e-3}, "updates", "train.learning_rate"),
        ({"config__output_dir": "b"}, "harmless", "output_dir"),
        ({"config__model__name_or_path": "n"}, "place", "model.name_or_path"),
        ({"model__weights_sha256": "v"}, "model", "model.weights_sha256"),
        ({"tokenizer__chat_template_sha256": "x"}, "template", "tokenizer.chat_template_sha256"),
        ({"tokenizer__sha256": "x"}, "tokenizer", "tokenizer.sha256"),
        ({"datasets__0__content_hash": "x"}, "data", "datasets.0.content_hash"),
        ({"rewards__r": {"source_sha256": "z"}}, "rewards", "rewards.r.source_sha256"),
        ({"own_code": {"mine.py:Mine": "b"}}, "code", "own_code.mine.py:Mine"),
        ({"packages__torch": "3.0"}, "packages", "packages.torch"),
        ({"packages__rich": "2"}, "other packages", "packages.rich"),
        ({"patch_fingerprint__hash": "x"}, "patches", "patch_fingerprint.hash"),
        ({"patch_fingerprint": {"hash": "x", "symbols": 4, "foreign": []}}, "loaded", "patch_fingerprint.hash"),
        ({"patch_fingerprint": {"hash": "x", "foreign": ["a"]}}, "patches", "patch_fingerprint.foreign"),
        ({"git__commit": "x"}, "code", "git.commit"),
        ({"system__processor": "y"}, "hardware", "system.processor"),
        ({"device__threads": 2}, "threads", "device.threads"),
        ({"environment__OMP_NUM_THREADS": "2"}, "threads", "environment.OMP_NUM_THREADS"),
        ({"data_order__sha256": "x"}, "order", "data_order.sha256"),
    ],
)
def test_each_kind_of_difference_is_named_once(change: dict[str, Any], kind: str, what: str) -> None:
    found = differences(entries(), entries(**change))
    assert [(d.kind, d.what) for d in found] == [(kind, what)]


def test_equal_manifests_have_no_differences() -> None:
    assert differences(entries(), entries()) == []


def test_what_acts_through_updates_is_no_cause_of_another_first_loss() -> None:
    found = differences(
        entries(), entries(config__train__learning_rate=1e-3, tokenizer__chat_template_sha256="x", packages__torch="3")
    )
    early = compare(rows(), rows(loss=(1, 5.0)))
    late = compare(rows(), rows(loss=(6, 5.0)))
    assert next(d.what for d in rank(found, early)) == "tokenizer.chat_template_sha256"
    assert next(d.what for d in rank(found, late)) == "train.learning_rate"


def test_rounding_is_put_down_to_threads_before_the_seed_of_nothing() -> None:
    found = differences(entries(), entries(device__threads=2, git__commit="x"))
    rounding = compare(rows(), rows(loss=(6, math.nextafter(2.0 / 6, 1))))
    assert rank(found, rounding)[0].what == "device.threads"


def test_order_is_a_consequence_of_the_seed() -> None:
    found = rank(differences(entries(), entries(config__train__seed=2, data_order__sha256="x")))
    assert [(d.what, d.likelihood) for d in found] == [("train.seed", 92), ("data_order.sha256", 2)]


def test_nested_settings_have_dotted_keys() -> None:
    assert flat({"a": {"b": 1}, "c": [{"d": 2}], "e": [1, 2], "f": {}}) == {
        "a.b": 1,
        "c.0.d": 2,
        "e": [1, 2],
        "f": {},
    }


# ---- folders --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained("name", **changes)` trains once, and gives the run folder."""
    root = tmp_path_factory.mktemp("runs")
    made: dict[str, Path] = {}

    def run(name: str, edit: Callable[[Path], None] | None = None, **changes: Any) -> Path:
        if name not in made:
            folder = root / name
            folder.mkdir()
            raw = runs.plain("sft", tiny_model, folder, **changes)
            if edit is not None:
                edit(Path(raw["dataset"]["name"]))
            from aligntune.core.backend_factory import create_trainer

            with contextlib.chdir(folder):  # outside the repository, whose state is part of a manifest
                create_trainer(raw).train()
            made[name] = Path(raw["output_dir"])
        return made[name]

    return run


def change_row(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[5] = json.dumps({"prompt": "Say 5", "completion": "It is something else."})
    path.write_text("\n".join(lines) + "\n")


def test_two_runs_of_one_file_have_identical_metrics(trained: Callable[..., Path]) -> None:
    a, b = trained("a"), trained("same")
    found = diff_runs(a, b)
    assert (found.verdict, found.weights, found.order_parts) == ("identical", True, None)
    assert found.parting.steps == 4
    stored = [read_stored(run).manifest for run in (a, b)]
    assert stored[0]["results"]["metrics_sha256"] == stored[1]["results"]["metrics_sha256"]
    assert stored[0]["data_order"]["sha256"] == stored[1]["data_order"]["sha256"]
    assert {d.kind for d in found.causes} <= {"loaded"}  # the first run of a process loads what the second finds
    assert {d.kind for d in found.harmless} <= {"harmless", "place"}


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("seed", {"train__seed": 4}, "train.seed"),
        ("row", {"edit": change_row}, "datasets.0.content_hash"),
        ("rate", {"train__learning_rate": 2e-3}, "train.learning_rate"),
        ("template", {"model__chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}, "template"),
    ],
)
def test_diff_names_what_was_changed(trained: Callable[..., Path], name: str, options: Any, what: str) -> None:
    found = diff_runs(trained("a"), trained(name, **options))
    assert found.verdict == "different"
    first = found.causes[0].what
    assert first == what or (what == "template" and first in ("model.chat_template", "tokenizer.chat_template_sha256"))
    assert found.parting.first_step == (2 if name == "rate" else 1) or name == "row"
    if name == "row":  # the batch with the row parts the order
        assert found.order_parts is not None


def test_diff_names_a_package(trained: Callable[..., Path], tmp_path: Path) -> None:
    a = trained("a")
    copy = Path(shutil.copytree(a, tmp_path / "copy"))
    stored = json.loads((copy / "manifest.json").read_text())
    stored["packages"]["torch"] = "1.0"
    (copy / "manifest.json").write_text(json.dumps(stored))
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[2]["loss"] = math.nextafter(lines[2]["loss"], 0)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = diff_runs(a, copy)
    assert found.verdict == "equal within tolerance"
    assert found.causes[0].what == "packages.torch"


def test_the_command_tells_it(trained: Callable[..., Path], cli: Callable[..., Any]) -> None:
    told = cli("diff", trained("a"), trained("seed", train__seed=4))
    assert told.code == 0
    assert "1. train.seed: 3 -> 4" in told.out
    assert "the curves part at step 1 (loss)" in told.out
    assert cli("diff", trained("a"), trained("seed"), "--exit-code").code == 1
    found = cli("diff", trained("a"), trained("same"), "--exit-code", "--json")
    assert found.code == 0
    assert found.json["verdict"] == "identical"
    nothing = cli("diff", trained("a"), "nowhere")
    assert nothing.code == 2
    assert "not a run folder" in nothing.err


# ---- reproduce ------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`reproduce` without its child processes: what is collected now, and what the second run does."""
    plan: dict[str, Any] = {"now": lambda stored: stored.manifest, "train": lambda stored, target: None}
    monkeypatch.setattr(reproducing, "collect_now", lambda stored: plan["now"](stored))
    monkeypatch.setattr(reproducing, "_train", lambda stored, target: plan["train"](stored, target))
    return plan


def test_a_run_that_came_out_the_same(trained: Callable[..., Path], alone: dict[str, Any], tmp_path: Path) -> None:
    alone["train"] = lambda stored, target: shutil.copytree(stored.path, target)
    found = reproduce(trained("a"), output_dir=tmp_path / "again")
    assert (found.verdict, found.passed, found.before) == ("identical", True, [])


def test_a_run_that_did_not(trained: Callable[..., Path], alone: dict[str, Any], tmp_path: Path) -> None:
    other = trained("seed", train__seed=4)
    alone["train"] = lambda stored, target: shutil.copytree(other, target)
    found = reproduce(trained("a"), output_dir=tmp_path / "again")
    assert (found.verdict, found.passed) == ("different", False)


def test_the_environment_alone(trained: Callable[..., Path], alone: dict[str, Any]) -> None:
    assert reproduce(trained("a"), check_only=True).verdict == "can be repeated here"
    alone["now"] = lambda stored: {**stored.manifest, "packages": {**stored.manifest["packages"], "trl": "0.1"}}
    found = reproduce(trained("a"), check_only=True)
    assert (found.verdict, found.passed, found.again) == ("differs here", False, None)
    assert [(d.what, d.b) for d in found.before] == [("packages.trl", "0.1")]


def test_what_cannot_be_repeated_is_refused(
    trained: Callable[..., Path], alone: dict[str, Any], tmp_path: Path
) -> None:
    a = trained("a")
    with pytest.raises(ConfigurationError, match="into itself"):
        reproduce(a, output_dir=a)
    with pytest.raises(ConfigurationError, match="holds a finished run"):
        reproduce(a, output_dir=trained("seed", train__seed=4))
    copy = Path(shutil.copytree(a, tmp_path / "copy"))
    stored = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**stored, "status": "failed"}))
    with pytest.raises(ValidationError, match="did not finish"):
        reproduce(copy)
    (copy / "manifest.json").write_text(json.dumps({**stored, "environment": {"WORLD_SIZE": "2"}}))
    with pytest.raises(ValidationError, match="several processes"):
        reproduce(copy)


def test_a_working_folder_that_is_gone(trained: Callable[..., Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained("a"), tmp_path / "copy"))
    stored = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**stored, "working_folder": str(tmp_path / "gone")}))
    with pytest.raises(EnvironmentError, match="working folder"):
        reproduce(copy, check_only=True)


def test_the_second_run_gets_the_threads_of_the_first(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_DYNAMIC", "yes")
    made = reproducing._environment(read_stored(trained("a")))
    assert made["OMP_NUM_THREADS"] == "1"
    assert "MKL_DYNAMIC" not in made
    assert made["PATH"]


@pytest.mark.slow
def test_reproduce_runs_it_again(trained: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("reproduce", trained("a"), "--output-dir", tmp_path / "again", "--json")
    assert done.code == 0, done.err
    assert done.json["verdict"] == "identical"
    assert [d["what"] for d in done.json["differences"] if d["kind"] != "patches"] == []
    moved = tmp_path / "moved"
    shutil.copytree(trained("a"), moved)
    config = yaml.safe_load((moved / "config.resolved.yaml").read_text())
    config["dataset"]["name"] = str(tmp_path / "gone.jsonl")
    (moved / "config.resolved.yaml").write_text(yaml.safe_dump(config))
    gone = cli("reproduce", moved, "--check-only")
    assert gone.code == 3
    assert "gone.jsonl" in gone.err
    with pytest.raises(TrainingError, match=r"gone\.jsonl"):
        reproducing._train(read_stored(moved), tmp_path / "third")


# ---- what the manifest holds ----------------------------------------------------------------------------------


def test_uncommitted_changes_are_kept_without_secrets(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        assert manifest._git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments) is not None

    git("init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / ".env").write_text("A=1\n")
    git("add", "-A", "-f")
    git("commit", "-q", "-m", "first")
    assert manifest.uncommitted(tmp_path) is None
    secrets = ["api_key = 'abc123'", "hf_abcdefghijklmnop", "PASSWORD: hunter2", "url = 'https://me:pw@host/x'"]
    (tmp_path / "code.py").write_text("x = 2\nmax_tokens = 5\n" + "\n".join(secrets) + "\n")
    (tmp_path / ".env").write_text("A=very-private\n")
    (tmp_path / "new.py").write_text("")
    text = manifest.uncommitted(tmp_path)
    assert text is not None
    assert "+x = 2" in text
    assert "-x = 1" in text
    assert "+max_tokens = 5" in text
    for secret in ("abc123", "hf_abc", "hunter2", "me:pw", "very-private"):
        assert secret not in text
    state = manifest.git_state(tmp_path)
    assert state is not None
    assert set(state["changed_files"]) == {".env", "code.py", "new.py"}
    short = manifest.uncommitted(tmp_path, limit=40)
    assert short is not None
    assert "cut off" in short
    assert len(short) < 90


def test_result_hashes_leave_clocks_out_and_notice_a_bit(trained: Callable[..., Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained("a"), tmp_path / "copy"))
    before = manifest.results(copy)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    (copy / "metrics.jsonl").write_text("".join(json.dumps({**row, "time": 99.0}) + "\n" for row in lines))
    assert manifest.results(copy) == before
    lines[0]["loss"] = math.nextafter(lines[0]["loss"], 0)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert manifest.results(copy)["metrics_sha256"] != before["metrics_sha256"]
    assert manifest.results(copy)["weights_sha256"] == before["weights_sha256"] is not None


def test_the_order_goes_on_where_a_checkpoint_stood(tiny_model: Path, tmp_path: Path) -> None:
    whole = runs.trainer("sft", tiny_model, tmp_path / "whole", train__max_steps=6, train__save_steps=2)
    whole.train()
    folder = tmp_path / "whole" / "out"
    straight = [json.loads(line) for line in (folder / "order.jsonl").read_text().splitlines()]
    stored = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**stored, "status": "interrupted"}))
    again = runs.trainer("sft", tiny_model, tmp_path / "whole", train__max_steps=6, train__save_steps=2)
    again.train(resume=str(folder / "checkpoint-4"))
    resumed = [json.loads(line) for line in (folder / "order.jsonl").read_text().splitlines()]
    assert resumed == straight
    assert straight[-1]["batches"] == 6


def test_differences_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert Difference("seed", "train.seed", 1, 2).to_dict()["effect"].startswith("another seed")
