"""PPO in whole runs: its update against plain PyTorch in float64, going on after a stop, early stops, two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import needs_unsloth, python

import helpers
import runs

SCORE = '''
def odd(text: str) -> float:
    """Something that varies from text to text."""
    return sum(map(ord, text)) % 7 / 3
'''


def trainer(model: Path, folder: Path, **changes: Any) -> Any:
    """A PPO run with a reward that varies."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "odd.py").write_text(SCORE, encoding="utf-8")
    algo = {"name": "ppo", **changes.pop("algo", {})}
    return runs.trainer("grpo", model, folder, algo=algo, rewards=[{"type": f"{folder / 'odd.py'}:odd"}], **changes)


def shorten(patch: pytest.MonkeyPatch) -> list[Any]:
    """Cut the completions to different lengths, and keep (scores, rollout) as the advantages get them."""
    from aligntune.algorithms.ppo import PPOPlugin

    seen: list[Any] = []
    real = PPOPlugin.advantages

    def rollout(self: Any, generate: Any, rows: Any) -> Any:
        import torch

        out = generate(rows)
        lengths = torch.tensor([12, 5, 1, 8]).unsqueeze(1)
        out["completion_mask"] = out["completion_mask"] * (torch.arange(out["completion_mask"].shape[1]) < lengths)
        return out

    def advantages(self: Any, rewards: Any, out: Any) -> Any:
        seen.append((rewards.clone(), {k: v.clone() for k, v in out.items() if hasattr(v, "clone")}))
        return real(self, rewards, out)

    patch.setattr(PPOPlugin, "rollout", rollout)
    patch.setattr(PPOPlugin, "advantages", advantages)
    return seen


class Plain:
    """PPO in a few lines: one policy, one value model, no library, float64.

    Args:
        model: the starting model's folder.
        rate: the learning rate of plain gradient descent.
    """

    def __init__(self, model: Path, rate: float) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        load = lambda: AutoModelForCausalLM.from_pretrained(model).double()  # noqa: E731
        self.policy, self.reference, self.trunk = load(), load(), load().model
        self.head = torch.zeros(1, self.policy.config.hidden_size, dtype=torch.float64, requires_grad=True)
        self.rate, self.losses = rate, []

    def logps(self, model: Any, out: Any) -> Any:
        ids, mask, n = self.joined(out)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -n - 1 : -1]
        return logits.log_softmax(-1).gather(-1, out["completion_ids"].unsqueeze(-1)).squeeze(-1)

    def values(self, out: Any) -> Any:
        ids, mask, n = self.joined(out)
        return (self.trunk(input_ids=ids, attention_mask=mask)[0][:, -n - 1 : -1] @ self.head.T).squeeze(-1)

    def joined(self, out: Any) -> Any:
        import torch

        parts = (("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask"))
        return *(torch.cat([out[a], out[b]], 1) for a, b in parts), out["completion_ids"].shape[1]

    def learn(self, scores: Any, out: Any, epochs: int) -> None:
        """Train on one rollout; a score loses 1 where the last token is neither the end (2) nor padding (0)."""
        import torch

        keep = out["completion_mask"].bool()
        old, reference = self.logps(self.policy, out).detach(), self.logps(self.reference, out).detach()
        old_values = self.values(out).detach()
        advantages, returns = torch.zeros_like(old), torch.zeros_like(old)
        for i, n in enumerate(keep.sum(1).tolist()):
            running = following = 0.0
            score = scores[i] - float(int(out["completion_ids"][i, n - 1]) not in (0, 2))
            for t in reversed(range(n)):
                r = -0.05 * (old[i, t] - reference[i, t]) + (score if t == n - 1 else 0.0)
                running = r + following - old_values[i, t] + 0.95 * running
                following = old_values[i, t]
                advantages[i, t], returns[i, t] = running, running + following
        white = (advantages - advantages[keep].mean()) / (advantages[keep].var(unbiased=False) + 1e-8).sqrt()
        for _ in range(epochs):
            ratio, values = (self.logps(self.policy, out) - old).exp(), self.values(out)
            policy = -torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white)[keep].mean()
            near = old_values + (values - old_values).clamp(-0.2, 0.2)
            value = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)[keep].mean()
            self.step(policy + 0.1 * value)

    def step(self, loss: Any) -> None:
        import torch

        learned = [*self.policy.parameters(), *self.trunk.parameters(), self.head]
        self.losses.append(loss.item())
        for weight, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            weight.data -= self.rate * gradient


def test_the_update_is_that_of_plain_pytorch(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rollouts of two passes, accumulated over two micro-batches of unequal lengths, by gradient descent."""
    import torch

    rollouts = shorten(monkeypatch)
    run = trainer(
        tiny_model,
        tmp_path,
        algo={"num_ppo_epochs": 2},
        train={
            "max_steps": 4, "per_device_batch_size": 2, "gradient_accumulation_steps": 2, "optimizer": "sgd",
            "learning_rate": 0.5, "lr_scheduler": "constant", "max_grad_norm": 1e9, "seed": 3,
        },
    )  # fmt: skip
    run.train()
    reference = Plain(tiny_model, 0.5)
    for scores, out in rollouts:
        reference.learn(scores[:, 0].double(), out, epochs=2)
    folder = Path(run.config.output_dir)
    assert runs.logged(folder) == pytest.approx(reference.losses, abs=2e-6)
    assert runs.logged(folder, "ppo/completion_kl")[1] != 0
    assert runs.logged(folder, "ppo/cut_off") == [1, 0.75]
    assert max(runs.logged(folder, "ppo/clip_fraction")) > 0
    start, trained, valued = (runs.weights(f) for f in (tiny_model, folder, folder / "value_model"))
    for name, weight in reference.policy.named_parameters():
        if name in trained:
            assert torch.allclose(trained[name].double(), weight, atol=1e-5), name
    for name, weight in reference.trunk.named_parameters():
        assert torch.allclose(valued[f"model.{name}"].double(), weight, atol=1e-5), name
    assert torch.allclose(valued["score.weight"].double(), reference.head, atol=1e-5)
    assert not torch.equal(trained["model.norm.weight"], start["model.norm.weight"])
    assert not torch.equal(valued["model.norm.weight"], start["model.norm.weight"])
    assert valued["score.weight"].any()


SETTINGS = {
    "algo": {
        "num_ppo_epochs": 2, "num_mini_batches": 2, "target_kl": 0.05, "kl_horizon": 20, "value_learning_rate": 5e-3,
    },
    "train__max_steps": 8,
    "train__save_steps": 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_a_killed_run_goes_on_to_the_same_weights(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy, value model, its part of the optimizer and the adaptive coefficient, bit for bit."""
    settings = {**SETTINGS, "algo": {**SETTINGS["algo"], "value_model": kind}}
    straight = trainer(tiny_model, tmp_path / "straight", **settings)
    straight.train()
    killed = trainer(tiny_model, tmp_path / "killed", **settings)
    record = killed.record

    def die(step: int, logs: Any) -> None:
        record(step, logs)
        if step == 6:
            raise RuntimeError("power cut")

    monkeypatch.setattr(killed, "record", die)
    with pytest.raises(RuntimeError, match="power cut"):
        killed.train()
    trainer(tiny_model, tmp_path / "killed", **settings).train(resume="latest")
    a, b = tmp_path / "straight" / "out", tmp_path / "killed" / "out"
    assert runs.same_weights(a, b)
    assert runs.weights(a / "value_model")
    assert runs.same_weights(a / "value_model", b / "value_model")
    for name in ("loss", "ppo/kl_coef", "ppo/value_loss", "ppo/ratio", "kl"):
        assert runs.logged(a, name) == runs.logged(b, name), name
    coefficients = runs.logged(a, "ppo/kl_coef")
    assert coefficients[0] == 0.05
    assert len(set(coefficients)) == len(coefficients) == 2
    assert not [p for p in (a / "value_model").rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_an_early_stop_leaves_the_weights_alone(tiny_model: Path, tmp_path: Path) -> None:
    """The first update of a rollout is at KL 0; all others are above the limit, so four steps change what one does."""
    common = {"train__lr_scheduler": "constant", "train__optimizer": "sgd", "train__learning_rate": 0.1}
    short = trainer(tiny_model, tmp_path / "short", train__max_steps=1, **common)
    short.train()
    stopped = trainer(tiny_model, tmp_path / "stopped", algo={"early_stop_kl": 1e-9}, train__max_steps=4, **common)
    stopped.train()
    a, b = (Path(t.config.output_dir) for t in (short, stopped))
    assert runs.same_weights(a, b)
    assert runs.same_weights(a / "value_model", b / "value_model")
    assert runs.logged(b, "ppo/skipped") == [0, 1, 1, 1]
    assert runs.logged(b, "ppo/skipped_so_far")[-1] == 3
    assert runs.logged(b, "ppo/approx_kl")[0] == pytest.approx(0, abs=1e-9)


def test_a_reward_model_and_a_function_are_rewarded_together(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.rewards import get_reward_function
    from aligntune.utils.rollouts import read_rollouts

    judge = helpers.save_tiny_reward_model(tmp_path / "rm")
    rewards = [
        {"type": "reward_model", "params": {"path": str(judge)}},
        {"type": "length", "weight": 0.5, "params": {"unit": "characters", "target_length": 9}},
    ]
    run = runs.trainer("grpo", tiny_model, tmp_path, algo={"name": "ppo"}, rewards=rewards, train__max_steps=2)
    run.train()
    rows = read_rollouts(tmp_path / "out").to_pylist()
    assert len(rows) > 1
    for row in rows:
        written = [{"role": "user", "content": row["prompt"]}]
        logit = get_reward_function("reward_model", path=str(judge)).compute(row["completion"], prompt=written)
        assert row["reward/reward_model"] == pytest.approx(logit, abs=1e-5)
        assert row["reward"] == pytest.approx(logit + 0.5 * row["reward/length"], abs=1e-5)


def test_with_adapters_the_reference_is_the_model_without_them(tiny_model: Path, tmp_path: Path) -> None:
    run = trainer(
        tiny_model, tmp_path, model__peft={"r": 4}, train__max_steps=8, train__learning_rate=1e-2,
        algo={"kl_estimator": "k3", "entropy_coef": 0.01},
    )  # fmt: skip
    run.train()
    folder = Path(run.config.output_dir)
    assert run._hf.ref_model is None
    kl = runs.logged(folder, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[1] > 1e-5
    assert (folder / "adapter_model.safetensors").is_file()
    assert any("lora_" in name for name in runs.weights(folder / "value_model"))
    assert runs.logged(folder, "entropy_coef") == [0.01] * 8


def test_what_only_the_data_or_the_models_show_is_refused_before_the_folder_is_made(
    tiny_model: Path, tmp_path: Path
) -> None:
    from aligntune.errors import AlignTuneError

    cases = {
        "column": ({"task_column": "kind", "task_weights": {"a": {"odd": 1.0}}}, "kind"),
        "task": ({"task_column": "source_completion", "task_weights": {"a": {"odd": 1.0}}}, "no row has the task 'a'"),
        "reward": ({"task_column": "source_completion", "task_weights": {"a": {"even": 1.0}}}, "no reward 'even'"),
        "nowhere": ({"value_model_path": str(tmp_path / "nowhere")}, "nowhere"),
    }
    for name, (algo, words) in cases.items():
        with pytest.raises(AlignTuneError, match=words):
            trainer(tiny_model, tmp_path / name, algo=algo).train()
        assert not (tmp_path / name / "out").exists()


@needs_unsloth
def test_it_runs_on_unsloth_with_the_same_first_losses(tiny_model: Path, tmp_path: Path) -> None:
    cases = {
        "whole": {"train__max_steps": 4, "train__save_steps": 4},
        "shared": {"train__max_steps": 2, "algo": {"value_model": "shared"}},
        "adapters": {"train__max_steps": 2, "model__peft": {"r": 4}},
    }
    theirs = python(
        """
        from pathlib import Path
        sys.path.insert(0, given["here"])
        import runs
        from test_ppo_runs import trainer
        result = {}
        for name, changes in given["cases"].items():
            run = trainer(Path(given["model"]), Path(given["folder"]) / name, backend="unsloth", **changes)
            run.train()
            out = Path(run.config.output_dir)
            result[name] = [runs.logged(out), runs.logged(out, "reward"), runs.logged(out, "ppo/approx_kl"),
                            sorted(str(p.relative_to(out)) for p in out.rglob("*.safetensors"))]
        """,
        tmp_path,
        model=tiny_model,
        folder=tmp_path / "unsloth",
        here=str(Path(__file__).parent),
        cases=cases,
    )
    for name, changes in cases.items():
        run = trainer(tiny_model, tmp_path / "trl" / name, **changes)
        run.train()
        out = Path(run.config.output_dir)
        losses, rewards, drift, files = theirs[name]
        assert losses[0] == pytest.approx(runs.logged(out)[0], abs=1e-5), name
        assert rewards[0] == pytest.approx(runs.logged(out, "reward")[0], abs=1e-6)
        assert drift[1] > 0
        assert files == sorted(str(p.relative_to(out)) for p in out.rglob("*.safetensors"))
    assert "checkpoint-4/aligntune_state.safetensors" in theirs["whole"][3]


WORKER = """
    import os, sys
    from pathlib import Path
    from unittest.mock import MagicMock
    sys.path[:0] = [{tests!r}, {here!r}]
    from test_ppo_runs import trainer
    from aligntune.core.callbacks import Progress, StopRequest
    run = trainer(Path({model!r}), Path({folder!r}) / os.environ["RANK"], **{changes!r})
    run._run = MagicMock()  # both processes would write into one folder
    hf = run._build(StopRequest(), Progress("ppo"))
    hf.train()
    from safetensors.torch import save_file
    learned = {{**hf.accelerator.unwrap_model(hf.model).state_dict(), **hf.plugin.state()}}
    tensors = {{k: v.detach().clone() for k, v in learned.items() if hasattr(v, "clone")}}
    save_file(tensors, Path({folder!r}) / (os.environ["RANK"] + ".safetensors"))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.slow
def test_two_processes_are_as_one(tiny_model: Path, tmp_path: Path) -> None:
    """Greedy completions, so that two processes of two rows and one of four learn from the same four."""
    import torch
    from safetensors.torch import load_file

    common = {"algo": {"num_ppo_epochs": 2}, "train__max_steps": 4, "generation__top_k": 1}
    one = trainer(tiny_model, tmp_path / "one", train__per_device_batch_size=4, **common)
    one.train()
    changes = {**common, "train__per_device_batch_size": 2}
    here = Path(__file__).parent
    script = textwrap.dedent(WORKER).format(
        tests=str(here.parent), here=str(here), model=str(tiny_model), folder=str(tmp_path), changes=changes
    )
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(2)
    ]  # fmt: skip
    said = [w.communicate(timeout=300)[0] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], "\n".join(said)
    kept = one._hf
    single = {**kept.accelerator.unwrap_model(kept.model).state_dict(), **kept.plugin.state()}
    first, second = (load_file(tmp_path / f"{r}.safetensors") for r in range(2))
    assert "value.score.weight" in first
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
        assert torch.allclose(weight, single[name], atol=2e-5), name
