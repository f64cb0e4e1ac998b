"""The command line for real, in fresh processes: train, stop with Ctrl-C, go on, report; quiet where nobody watches."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = [sys.executable, "-m", "aligntune"]


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [{"prompt": f"Say {i}", "completion": f"{i} it is"} for i in range(64)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {
        "task": "instruction_following",
        "model": {"name_or_path": str(tiny_model)},
        "dataset": "pairs.jsonl",
        "train": {"max_steps": 4, "per_device_batch_size": 2, "save_steps": 2},
        "logging": {"steps": 1},
        "output_dir": "out",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], cwd=place, capture_output=True, text=True, timeout=300)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_json_is_one_document_and_silent_otherwise(place: Path) -> None:
    done = run(place, "train", "run.yaml", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["total_steps"] == 4
    assert result["model_path"] == "out"
    assert (place / "out/model.safetensors").is_file()
    assert yaml.safe_load((place / "out/config.resolved.yaml").read_text())["train"]["max_steps"] == 4
    assert [m["step"] for m in metrics(place / "out") if "loss" in m] == [1, 2, 3, 4]
    report = run(place, "report", "out")
    assert report.returncode == 0, report.stderr
    assert Path(place, report.stdout.strip()).is_file()


def test_ctrl_c_stops_cleanly_and_resume_goes_on(place: Path) -> None:
    line = [*PROGRAM, "train", "run.yaml", "train.max_steps=100000", "train.save_steps=1000"]
    with subprocess.Popen(line, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (place / "out/metrics.jsonl").exists() and len(metrics(place / "out")) > 2, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "error: stopped" in err
    assert "--resume" in err
    checkpoint = next((place / "out").glob("checkpoint-*"))
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert json.loads((place / "out/manifest.json").read_text())["status"] == "interrupted"
    refused = run(place, "train", "run.yaml")
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = run(place, "train", "run.yaml", f"train.max_steps={step + 3}", "train.save_steps=1000", "--resume")
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in metrics(place / "out") if "loss" in m] == list(range(1, step + 4))
    assert json.loads((place / "out/manifest.json").read_text())["status"] == "finished"


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run did not begin"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_a_terminal_sees_progress_and_notes(place: Path) -> None:
    master, slave = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    with subprocess.Popen(
        [*PROGRAM, "train", "run.yaml"], cwd=place, stdout=subprocess.PIPE, stderr=slave, env=env, text=True
    ) as process:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
        out = process.communicate()[0]
    os.close(master)
    assert process.returncode == 0, shown.decode()
    assert "trained 4 steps" in out
    text = shown.decode()
    assert re.search(r"step \d of 4", text)
    assert "format prompt_completion" in text


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 4096)
    except OSError:  # Linux ends a pseudo-terminal whose other side is closed with EIO
        return b""


def test_eval_prints_values_with_intervals_and_keeps_the_items(cli: Any, place: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(20)))
    model = yaml.safe_load((place / "run.yaml").read_text())["model"]["name_or_path"]
    line = ["eval", "--model", model, "--kind", "perplexity", "--dataset", "texts.jsonl"]
    ran = cli(*line, "--output-dir", "scores", "--json")
    assert ran.code == 0, ran.err
    metrics_of = ran.json["tasks"]["perplexity"]["metrics"]
    assert 150 < metrics_of["perplexity"]["value"] < 400  # untrained, over 259 tokens
    assert metrics_of["perplexity"]["low"] < metrics_of["perplexity"]["value"] < metrics_of["perplexity"]["high"]
    assert len((place / "scores/items/perplexity.jsonl").read_text().splitlines()) == 20
    text = cli(*line).out
    assert "perplexity  perplexity: " in text
    again = cli(*line, "--output-dir", "scores")
    assert again.code == 2
    assert "holds a finished run" in again.err
