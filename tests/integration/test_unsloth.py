"""The Unsloth backend with the real package, each test in a process of its own (Unsloth cannot be undone)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs

INSTALLED = importlib.util.find_spec("unsloth") is not None
needs_unsloth = pytest.mark.skipif(
    not INSTALLED, reason="unsloth is not installed (see `aligntune info` for the command)"
)


def python(code: str, cwd: Path, /, **values: Any) -> Any:
    """Run code in a fresh process in the folder `cwd`; it gets `given` and sets `result`, which comes back.

    Variables that this process may carry from a TRL run are left out.
    """
    head = f"import json, sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    script = f"{head}given = json.loads({json.dumps(values, default=str)!r})\n{textwrap.dedent(code)}\n"
    script += "print('\\n@@' + json.dumps(result))\n"
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PURE_TRL", "TRL_ONLY", "DISABLE_UNSLOTH", "UNSLOTH"))
    }
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.rpartition("@@")[2])


TRAIN_ALL = """
    import os
    from pathlib import Path
    import runs
    from aligntune.core.isolation import FLAGS, fingerprint

    os.environ["PURE_TRL_MODE"] = "1"
    result = {"runs": {}}
    for kind in ("sft", "dpo", "grpo"):
        for peft in (None, {"r": 4}):
            folder = Path(given["folder"]) / f"{kind}-{peft is not None}"
            trainer = runs.trainer(kind, given["model"], folder, backend="unsloth", model__peft=peft)
            trained = trainer.train()
            out = trainer.config.output_dir
            result["runs"][folder.name] = {
                "losses": runs.logged(out), "rewards": runs.logged(out, "reward"), "files": os.listdir(out),
                "kl": runs.logged(out, "kl"), "evaluated": trainer.evaluate(folder / f"{kind}.jsonl"),
                "answers": trainer.generate(["Say 1"], max_new_tokens=4), "steps": trained.total_steps,
                "manifest": json.loads((Path(out) / "manifest.json").read_text()),
            }
    result["flags"] = [f for f in FLAGS if f in os.environ]
    result["unsloth"] = "unsloth" in sys.modules
    result["fingerprint"] = fingerprint()
    result["beside"] = sorted(os.listdir("."))
"""


@pytest.fixture(scope="module")
def on_unsloth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six runs (three algorithms, whole and LoRA) through the same definitions, in one Unsloth process."""
    if not INSTALLED:
        pytest.skip("unsloth is not installed")
    working = tmp_path_factory.mktemp("cwd")
    return python(TRAIN_ALL, working, model=tiny_model, folder=tmp_path_factory.mktemp("unsloth"))


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize("peft", [None, {"r": 4}])
def test_the_first_loss_equals_that_of_trl(
    kind: str, peft: Any, on_unsloth: Any, tiny_model: Path, tmp_path: Path
) -> None:
    theirs = on_unsloth["runs"][f"{kind}-{peft is not None}"]
    ours = runs.trainer(kind, tiny_model, tmp_path, model__peft=peft, train__max_steps=1)
    ours.train()
    out = ours.config.output_dir
    assert theirs["losses"][0] == pytest.approx(runs.logged(out)[0], abs=1e-5)
    if kind == "grpo":
        assert theirs["rewards"][0] == pytest.approx(runs.logged(out, "reward")[0], abs=1e-6)


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize("peft", [False, True])
def test_it_trains_evaluates_and_saves(kind: str, peft: bool, on_unsloth: Any) -> None:
    run = on_unsloth["runs"][f"{kind}-{peft}"]
    assert run["steps"] == 4 == len(run["losses"])
    if kind != "grpo":
        assert run["losses"][-1] < run["losses"][0]
    else:
        assert run["kl"][0] == pytest.approx(0, abs=1e-6)
        assert run["kl"][-1] > 0
    assert ("adapter_model.safetensors" if peft else "model.safetensors") in run["files"]
    assert {"manifest.json", "metrics.jsonl", "report.html"} <= set(run["files"])
    measured = {"sft": "eval_nll", "dpo": "eval_rewards/accuracies", "grpo": "eval_reward"}[kind]
    assert measured in run["evaluated"]
    assert len(run["answers"]) == 1
    assert run["manifest"]["backend"] == "unsloth"


def test_the_flags_are_cleared_and_nothing_is_left_in_the_working_folder(on_unsloth: Any) -> None:
    assert on_unsloth["flags"] == []
    assert on_unsloth["unsloth"]
    assert on_unsloth["beside"] == []


def test_the_fingerprint_names_the_code_that_unsloth_replaced(on_unsloth: Any) -> None:
    found = on_unsloth["fingerprint"]
    assert len(found["foreign"]) > 5
    assert any("Trainer" in name for name in found["foreign"])
    run = on_unsloth["runs"]["sft-False"]["manifest"]
    assert "foreign" in json.dumps(run)


@needs_unsloth
def test_saved_weights_load_in_trl(tiny_model: Path, tmp_path: Path) -> None:
    result = python(
        """
        import runs
        from pathlib import Path
        trainer = runs.trainer("sft", given["model"], Path(given["folder"]), backend="unsloth", train__learning_rate=1e-2)
        trainer.train()
        result = trainer.evaluate(Path(given["folder"]) / "sft.jsonl")
        """,
        tmp_path,
        model=tiny_model,
        folder=tmp_path,
    )
    ours = runs.trainer("sft", tmp_path / "out", tmp_path / "after")
    assert ours.evaluate(tmp_path / "sft.jsonl")["eval_nll"] == pytest.approx(result["eval_nll"], abs=1e-4)


@needs_unsloth
def test_what_its_cpu_backend_would_ignore_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = runs.trainer("sft", tiny_model, tmp_path / "adapter", model__peft={"r": 4}, train__max_steps=1)
    adapter.train()
    result = python(
        """
        import runs
        from pathlib import Path
        from aligntune.errors import AlignTuneError
        result = {}
        for name, changes in given["cases"].items():
            folder = Path(given["folder"]) / name
            try:
                runs.trainer("sft", given["model"], folder, backend="unsloth", **changes).train()
                result[name] = "trained"
            except AlignTuneError as error:
                result[name] = f"{type(error).__name__}: {error.message} | {error.hint}"
            result[name + " wrote"] = (folder / "out").exists()
        """,
        tmp_path,
        model=tiny_model,
        folder=tmp_path,
        cases={
            "packing": {"task__packing": True},
            "optimizer": {"train__optimizer": "adamw_8bit"},
            "padding-free": {"task__padding_free": True},
            "quantization": {"model__quantization": "8bit", "model__peft": {"r": 4}},
            "going on": {"model__name_or_path": adapter.config.output_dir, "model__peft": {"r": 4}},
        },
    )
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU, where these settings work")
    assert "task.packing has no effect on Unsloth's CPU backend" in result["packing"]
    assert "optimizer" in result["optimizer"]
    assert "task.padding_free has no effect on Unsloth's CPU backend" in result["padding-free"]
    assert "model.quantization has no effect on Unsloth's CPU backend" in result["quantization"]
    assert "LoRA adapter" in result["going on"]
    assert not any(written for name, written in result.items() if name.endswith("wrote"))


@needs_unsloth
def test_trl_is_refused_after_unsloth_was_imported(tiny_model: Path, tmp_path: Path) -> None:
    result = python(
        """
        import os
        os.environ["UNSLOTH_COMPILE_LOCATION"] = os.path.abspath("cache")
        import unsloth
        import yaml
        from pathlib import Path
        from aligntune.cli.main import main
        import contextlib, io
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            code = main(["train", given["file"]])
        result = {"code": code, "err": err.getvalue(), "wrote": Path(given["out"]).exists()}
        """,
        tmp_path,
        file=write_config(runs.plain("sft", tiny_model, tmp_path), tmp_path),
        out=tmp_path / "out",
    )
    assert result["code"] == 3
    assert "'unsloth' was imported in this process" in result["err"]
    assert "isolation: process" in result["err"]
    assert not result["wrote"]


def test_unsloth_is_refused_after_transformers_was_imported(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    import transformers  # noqa: F401 - the point of the test

    from aligntune.core.backend import BackendInfo

    monkeypatch.setattr(BackendInfo, "available", True)
    ran = cli("train", write_config(runs.plain("sft", tiny_model, tmp_path, backend="unsloth"), tmp_path))
    assert ran.code == 3
    assert "was imported first" in ran.err
    assert "isolation: process" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_refused_with_the_command(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "unsloth" else found(name, *a))
    ran = cli("train", write_config(runs.plain("sft", tiny_model, tmp_path, backend="unsloth"), tmp_path))
    assert ran.code == 3
    assert "pip install --no-deps unsloth==" in ran.err
    assert "backend: trl" in ran.err
    assert "Traceback" not in ran.err


def write_config(raw: dict[str, Any], folder: Path) -> str:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(file)


@needs_unsloth
def test_one_line_changes_between_the_backends(tiny_model: Path, tmp_path: Path) -> None:
    """The command line, from the same file with another `backend`."""
    file = write_config(runs.plain("sft", tiny_model, tmp_path), tmp_path)
    out = {}
    for backend in ("trl", "unsloth"):
        arguments = ["train", file, f"backend={backend}", f"output_dir={tmp_path / backend}", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "aligntune", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        out[backend] = json.loads(done.stdout)
    assert out["trl"]["final_loss"] == pytest.approx(out["unsloth"]["final_loss"], abs=1e-4)
