"""The manifest and the device manager: hashes that notice a change, no secrets, true hardware."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aligntune import errors
from aligntune.utils import manifest
from aligntune.utils.device import DeviceManager, peak_rss_bytes, rss_bytes


def test_the_weights_hash_covers_the_content(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    entry, same = manifest.model_entry(str(tiny_model)), manifest.model_entry(str(copy))
    weights = copy / "model.safetensors"
    assert entry["files"]["model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert set(entry["files"]) == {"model.safetensors", "config.json"}
    assert entry["bytes"] == weights.stat().st_size
    assert same["weights_sha256"] == entry["weights_sha256"]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit of the last weight: same size, same header
    weights.write_bytes(bytes(data))
    assert manifest.model_entry(str(copy))["weights_sha256"] != entry["weights_sha256"]


def test_a_hub_id_that_is_not_in_the_cache_has_no_hash() -> None:
    assert manifest.model_entry("owner/nothing", "v1") == {
        "path": "owner/nothing",
        "revision": "v1",
        "weights_sha256": None,
        "files": {},
    }


def test_a_hub_id_in_the_cache_is_hashed_with_its_commit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_model, snapshot)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(snapshot / "config.json"))
    entry = manifest.model_entry("owner/name")
    assert entry["commit"] == "a" * 40
    assert entry["weights_sha256"] == manifest.model_entry(str(tiny_model))["weights_sha256"]


def test_the_tokenizer_hash_ignores_padding_state_and_notices_the_template(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    entry = manifest.tokenizer_entry(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert manifest.tokenizer_entry(tokenizer) == entry
    tokenizer.chat_template += " "
    changed = manifest.tokenizer_entry(tokenizer)
    assert changed["sha256"] == entry["sha256"]
    assert changed["chat_template_sha256"] != entry["chat_template_sha256"]
    tokenizer.add_tokens(["newtoken"])
    assert manifest.tokenizer_entry(tokenizer)["sha256"] != entry["sha256"]


def test_reward_sources_are_hashed_by_their_text() -> None:
    def length(text: str) -> float:
        return float(len(text))

    class Counter:
        def __call__(self, text: str) -> float:
            return 1.0

    assert manifest.source_hash("abc") == hashlib.sha256(b"abc").hexdigest()
    assert manifest.source_hash(length) != manifest.source_hash(Counter)
    assert manifest.source_hash(Counter()) == manifest.source_hash(Counter)
    assert manifest.source_hash(len) == hashlib.sha256(b"builtins.len").hexdigest()


def test_collect_has_every_part_and_is_plain_json(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from aligntune.core.config.sections import TrainConfig

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_SECRET_TOKEN", "hidden")
    monkeypatch.setattr(sys, "argv", ["aligntune", "train", "x.yaml", "--hub-token=abc", "train.max_tokens=5"])
    prepared = SimpleNamespace(source="d.jsonl", format="text", content_hash="h", notes=["n"], dataset=[1, 2, 3])
    entries = manifest.collect(
        SimpleNamespace(train=TrainConfig(seed=7)),
        datasets=[prepared, {"source": "e", "content_hash": "i"}],
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        model_path=str(tiny_model),
        reward_sources={"own": "source"},
        fingerprint={"patched": 0},
        device=DeviceManager("cpu").summary(),
        extra={"backend": "trl"},
    )
    assert json.loads(json.dumps(entries)) == entries
    assert entries["command"] == ["aligntune", "train", "x.yaml", "--hub-token=(hidden)", "train.max_tokens=5"]
    assert entries["datasets"][0] == {
        "source": "d.jsonl", "format": "text", "content_hash": "h", "notes": ["n"], "rows": 3,
    }  # fmt: skip
    assert entries["datasets"][1] == {"source": "e", "content_hash": "i"}
    assert entries["seeds"] == {"seed": 7}
    assert entries["packages"]["transformers"] == __import__("transformers").__version__
    assert entries["patch_fingerprint"] == {"patched": 0}
    assert entries["environment"]["OMP_NUM_THREADS"] == "1"
    assert "hidden" not in json.dumps(entries["environment"])
    assert entries["system"]["python"] == sys.version.split()[0]
    assert entries["device"]["device"] == "cpu"
    assert entries["backend"] == "trl"


def test_git_state_names_commit_and_changes(tmp_path: Path) -> None:
    assert manifest.git_state(tmp_path) is None
    environment = {
        **os.environ, "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip
    (tmp_path / "f").write_text("one")
    for command in (["init", "-q", "-b", "main"], ["add", "f"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, env=environment, check=True)
    clean = manifest.git_state(tmp_path)
    assert (clean["branch"], clean["dirty"], clean["diff_sha256"]) == ("main", False, None)
    assert len(clean["commit"]) == 40
    (tmp_path / "f").write_text("two")
    dirty = manifest.git_state(tmp_path)
    assert dirty["dirty"]
    assert len(dirty["diff_sha256"]) == 64
    assert dirty["commit"] == clean["commit"]


def test_the_device_manager_on_the_cpu() -> None:
    cpu = DeviceManager("cpu")
    assert [cpu.precision(name) for name in ("auto", "fp32", "bf16")] == ["fp32", "fp32", "bf16"]
    with pytest.raises(errors.EnvironmentError, match="fp16") as caught:
        cpu.precision("fp16")
    assert "bf16 or fp32" in caught.value.hint
    with pytest.raises(errors.ConfigurationError, match="unknown precision 'fp8'"):
        cpu.precision("fp8")
    with pytest.raises(errors.ConfigurationError, match="unknown device 'tpu'"):
        DeviceManager("tpu")


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_precision_on_a_gpu_follows_its_age(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    gpu = DeviceManager("auto")
    assert (gpu.device, gpu.precision("auto")) == ("cuda", expected)
    if not bf16:
        with pytest.raises(errors.EnvironmentError, match="'bf16', which Tesla T4 does not support"):
            gpu.precision("bf16")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert DeviceManager("auto").device == "cpu"
    with pytest.raises(errors.EnvironmentError, match=r"model\.device is 'cuda'") as caught:
        DeviceManager("cuda")
    assert caught.value.exit_code == 3


def test_memory_is_in_bytes() -> None:
    memory = DeviceManager("cpu").memory()
    assert set(memory) == {"rss", "peak_rss"}
    assert 20e6 < memory["rss"] < 50e9
    assert peak_rss_bytes() >= 0.5 * rss_bytes()


def test_log_messages_stay_silent_until_configured(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "from aligntune.utils import logging as l\n"
        "log = l.get_logger('x'); log.error('early'); l.configure('info'); l.configure('info')\n"
        "log.info('once'); log.debug('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "INFO once\n")
