"""Counterfactual GRPO and PACE in whole runs: their loss, going on after a stop, both backends, several processes."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import runs

MARKERS = list("abcdefghijklm ")  # an untrained model writes one of them now and then
ALGO = {
    "pace": {"name": "pace", "refresh": 2},
    "counterfactual_grpo": {
        "name": "counterfactual_grpo",
        "num_generations": 4,
        "answer_markers": MARKERS,
        "beta": 0.5,
    },
}
REWARD = '''
from aligntune.rewards import reward


@reward("early_letters", range=(0, 1))
def early_letters(text: str, tag: str, prompt) -> float:
    """Share of letters, and an error where the columns are those of another prompt."""
    said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if not said.endswith(f" {tag}"):
        raise ValueError(f"{said} came with {tag}")
    return sum(c.isalpha() for c in text) / len(text) if text else 0.0
'''


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all runs, because a reward is registered once in a process."""
    path = tmp_path_factory.mktemp("reward") / "letters.py"
    path.write_text(REWARD, encoding="utf-8")
    return path


def trainer(name: str, model: Path, reward: Path | str, folder: Path, **changes: Any) -> Any:
    algo = {**ALGO[name], **changes.pop("algo", {})}
    folder.mkdir(parents=True, exist_ok=True)
    rows = runs.write_rows(folder / "prompts.jsonl", [{"prompt": f"Say {i}", "tag": str(i)} for i in range(24)])
    given = {"algo": algo, "rewards": [{"type": f"{reward}:early_letters"}], "datasets": [{"name": str(rows)}]}
    return runs.trainer("grpo", model, folder, **{**given, **changes})


def state(checkpoint: Path) -> dict[str, Any]:
    """The plugin's part of a checkpoint, as plain values."""
    from safetensors.torch import load_file

    tensors = checkpoint / "aligntune_state.safetensors"
    found = {k: v.tolist() for k, v in load_file(tensors).items()} if tensors.exists() else {}
    return {**json.loads((checkpoint / "aligntune_state.json").read_text()), **found}


# ---- going on after a stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ALGO))
def test_a_run_that_died_goes_on_to_the_same_end(
    name: str, tiny_model: Path, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.utils.rollouts import read_rollouts

    steps = {"train__max_steps": 6, "train__save_steps": 3}
    straight = trainer(name, tiny_model, reward, tmp_path / "straight", **steps)
    straight.train()
    died = trainer(name, tiny_model, reward, tmp_path / "died", **steps)
    record = died.record

    def die(step: int, logs: Any) -> None:
        record(step, logs)
        if step == 5:
            raise RuntimeError("power cut")

    monkeypatch.setattr(died, "record", die)
    with pytest.raises(RuntimeError, match="power cut"):
        died.train()
    trainer(name, tiny_model, reward, tmp_path / "died", **steps).train(resume="latest")
    ours, theirs = tmp_path / "died" / "out", tmp_path / "straight" / "out"
    assert runs.same_weights(ours, theirs)
    for key in ("loss", "reward", "pace/value" if name == "pace" else "counterfactual/marked"):
        assert runs.logged(ours, key) == runs.logged(theirs, key)
        assert len(runs.logged(ours, key)) == 6
    assert state(ours / "checkpoint-6") == state(theirs / "checkpoint-6")
    assert read_rollouts(ours).column("prompt").to_pylist() == read_rollouts(theirs).column("prompt").to_pylist()
    kept = state(theirs / "checkpoint-6")
    if name == "pace":
        assert kept["generations"] == 6
        assert kept["snapshot_step"] == 4
        assert len(kept["keys"]) == len(kept["a"]) >= 12
        assert sum(kept["lengths"]) == len(kept["ids"]) == len(kept["logps"])
    else:
        assert kept["marked"] + kept["unmarked"] == 24
        assert kept["marked"] > 0


def test_the_prompts_that_pace_draws_reach_rewards_and_rollouts(
    tiny_model: Path, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward itself checks that each prompt comes with its own columns."""
    from aligntune.algorithms.pace import PacePlugin
    from aligntune.utils.rollouts import read_rollouts

    drawn: list[str] = []
    real = PacePlugin._drawn

    def spy(self: Any, count: int) -> Any:
        rows = real(self, count)
        drawn.extend(row["prompt"][-1]["content"] for row in rows)
        return rows

    monkeypatch.setattr(PacePlugin, "_drawn", spy)
    run = trainer("pace", tiny_model, reward, tmp_path, train__max_steps=3, algo={"num_generations": 2})
    run.train()
    stored = read_rollouts(run.config.output_dir)
    assert stored.column("prompt").to_pylist() == drawn
    assert drawn[0::2] == drawn[1::2]
    assert len(drawn) == 12
    assert "frac_reward_zero_std" in (tmp_path / "out" / "metrics.jsonl").read_text()


# ---- the weighted loss ----------------------------------------------------------------------------------------------


def test_weights_change_the_policy_term_and_never_the_kl_term(tiny_model: Path, reward: Path, tmp_path: Path) -> None:
    """Gradients of real completions: those of the KL term alone are equal with and without weights, and the policy
    term's are those of the formula."""
    import torch

    run = trainer("counterfactual_grpo", tiny_model, reward, tmp_path, train__max_steps=2, train__learning_rate=1e-2)
    run.train()
    hf = run._hf
    hf.reward_funcs[0].recorder = None
    hf.model.train()
    hf.current_gradient_accumulation_steps = 1
    rows = [hf.train_dataset[i // 4] for i in range(4)]
    torch.manual_seed(1)
    weighted = hf._generate_and_score_completions(rows)
    weights = hf.plugin.token_weights(weighted)
    hf.plugin.token_weights = lambda out: None
    torch.manual_seed(1)
    plain = hf._generate_and_score_completions(rows)
    assert torch.equal(weighted["completion_ids"], plain["completion_ids"])
    assert torch.equal(weighted["advantages"], plain["advantages"].unsqueeze(1) * weights)
    assert weights.std() > 0.1
    mask = plain["completion_mask"]
    assert torch.allclose((weights * mask).sum(1) / mask.sum(1), torch.ones(4), atol=1e-6)

    def gradient(loss: Any) -> Any:
        hf.model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in hf.model.parameters()]).double()

    def trained(inputs: Any, beta: float) -> Any:
        hf.beta = beta
        return gradient(hf.compute_loss(hf.model, inputs))

    kl = [trained(given, 0.5) - trained(given, 0.0) for given in (weighted, plain)]
    assert kl[0].norm() > 1e-3
    assert torch.allclose(kl[0], kl[1], atol=1e-6)
    logps = run.backend.per_token_logps(hf.model, plain, 1.0)
    policy = -(weights * plain["advantages"].unsqueeze(1) * logps * mask).sum(1) / mask.sum(1)
    expected = gradient(policy.mean())
    assert expected.norm() > 1e-3
    assert torch.allclose(trained(weighted, 0.0), expected, atol=1e-6)
    assert not torch.allclose(trained(plain, 0.0), expected, atol=1e-4)


# ---- both backends --------------------------------------------------------------------------------------------------

ON_UNSLOTH = """
    from pathlib import Path
    import runs
    from test_pace_runs import trainer

    result = {}
    for name in ("pace", "counterfactual_grpo"):
        run = trainer(name, Path(given["model"]), given["reward"], Path(given["folder"]) / name, backend="unsloth",
                      train__max_steps=2, train__save_steps=2)
        run.train()
        out = run.config.output_dir
        result[name] = {k: runs.logged(out, k) for k in given["keys"]}
        result[name]["state"] = (Path(out) / "checkpoint-2" / "aligntune_state.json").is_file()
"""


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed")
def test_both_backends_compute_the_same(tiny_model: Path, reward: Path, tmp_path: Path) -> None:
    """The same completions, rewards, weights or baselines, and gradients in both steps; G = 1 there too."""
    tests = Path(__file__).parents[1]
    keys = ["loss", "reward", "grad_norm", "pace/value", "pace/drift", "counterfactual/spans", "kl"]
    given = {"model": tiny_model, "reward": reward, "folder": tmp_path / "unsloth", "keys": keys}
    head = f"import json, sys\nsys.path[:0] = [{str(tests)!r}, {str(tests / 'integration')!r}]\n"
    script = f"{head}given = json.loads({json.dumps(given, default=str)!r})\n{textwrap.dedent(ON_UNSLOTH)}\n"
    script += "print('\\n@@' + json.dumps(result))\n"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PURE_TRL", "TRL_ONLY", "DISABLE_UNSLOTH"))}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = json.loads(done.stdout.rpartition("@@")[2])
    for name in ALGO:
        run = trainer(name, tiny_model, reward, tmp_path / name, train__max_steps=2, train__save_steps=2)
        run.train()
        for key in keys:
            assert theirs[name][key] == pytest.approx(runs.logged(run.config.output_dir, key), abs=1e-5), (name, key)
        assert theirs[name]["state"]
        assert len(theirs[name]["loss"]) == 2
    assert theirs["counterfactual_grpo"]["kl"][1] > 0
    assert len(theirs["pace"]["pace/value"]) == 2


# ---- several processes ------------------------------------------------------------------------------------------------

WORKER = """
    import json, os, sys
    from pathlib import Path
    from types import SimpleNamespace
    import torch, trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from aligntune.algorithms.pace import PACE
    from aligntune.backends.trl.backend import TRLBackend
    from aligntune.core.rl.layer import layered
    from aligntune.rewards import CompositeReward, get_reward_function, reward
    from aligntune.rewards.adapters import TRLReward

    model, folder = sys.argv[1:3]
    rank = int(os.environ["RANK"])
    args = trl.GRPOConfig(output_dir=folder, per_device_train_batch_size=4, num_generations=4, max_steps=4, seed=3,
        learning_rate=1e-2, beta=0.0, max_completion_length=8, bf16=False, gradient_checkpointing=False, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1)
    args.num_generations = 2
    rows = Dataset.from_list([{"prompt": f"Say {i}"} for i in range(16)])

    @reward("even_bytes", range=(0, 1))
    def even_bytes(text: str) -> float:
        return sum(ord(c) % 2 == 0 for c in text) / len(text) if text else 0.0

    composite = CompositeReward([get_reward_function("even_bytes")])
    hf = layered(trl.GRPOTrainer)(model=AutoModelForCausalLM.from_pretrained(model), args=args, train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model), reward_funcs=[TRLReward(composite)])
    train = SimpleNamespace(per_device_batch_size=4, seed=3)
    hf.attach(PACE(num_generations=2, refresh=1).plugin(None), SimpleNamespace(train=train), TRLBackend())
    advantages, own = [], hf.plugin.advantages
    def spy(rewards, out):
        found = own(rewards, out)
        advantages.append([[r["prompt"] for r in hf.plugin.rows], found.tolist(), hf.plugin.total(rewards).tolist()])
        return found
    hf.plugin.advantages = spy
    hf.train()
    kept = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in hf.plugin.state().items()}
    Path(folder, f"{rank}.json").write_text(json.dumps([kept, advantages]))
"""


@pytest.mark.slow
def test_two_processes_share_one_tracker(tiny_model: Path, tmp_path: Path) -> None:
    """Gloo: the same tracker on both ranks, different prompts on each, and the advantages of the whole batch."""
    from aligntune.algorithms.tracker import Tracker, normalised, prompt_key

    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "worker.py", str(tiny_model), str(tmp_path)],
            cwd=tmp_path,
            env={**os.environ, "RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]  # fmt: skip
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    (kept, one), (other, two) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert kept == other
    assert kept["generations"] == 4 == len(one)
    tracker = Tracker(0.875, 0.96, 0.06)
    for (prompts, advantages, rewards), (more, rest, same) in zip(one, two, strict=True):
        assert rewards == same
        drawn = prompts + more
        assert len(set(drawn)) == 4
        if not tracker.beliefs:
            expected = normalised([r - 0.5 for r in rewards])
            assert advantages + rest == pytest.approx(expected, abs=1e-5)
        for i in range(0, 8, 2):
            tracker.update(prompt_key(drawn[i]), (rewards[i] + rewards[i + 1]) / 2, None, [], [])
    assert [list(k) for k in tracker.beliefs] == kept["keys"]
