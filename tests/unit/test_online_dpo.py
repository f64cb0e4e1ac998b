"""Online DPO: the order of a pair, the loss against a reference, what ties do, and whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runs
from aligntune.algorithms.online_dpo import Pairs, order, pair_losses
from aligntune.core.config import build_config
from aligntune.errors import ConfigurationError

NAN = float("nan")
REWARDS = '''
def vowels(text: str) -> float:
    """A number that nearly every pair differs in."""
    return sum(ord(c) % 7 for c in text) / 10


def same(text: str) -> float:
    return 1.0


def some(text: str) -> float | None:
    """No score for texts of an odd sum, and otherwise a number."""
    total = sum(ord(c) for c in text)
    return None if total % 2 else float(total)
'''


def start(model: Path, folder: Path, reward: str = "vowels", **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "r.py").write_text(REWARDS, encoding="utf-8")
    defaults = {"algo": {"name": "online_dpo"}, "rewards": [{"type": f"{folder}/r.py:{reward}"}]}
    return runs.trainer("grpo", model, folder, **{**defaults, **changes})


def reference_loss(delta: Any, signs: list[int], beta: float, loss_type: str) -> Any:
    """The mean loss of the pairs that have an order, one by one."""
    found = []
    for i in range(0, len(signs), 2):
        if signs[i] == 0:
            continue
        w, l = (i, i + 1) if signs[i] > 0 else (i + 1, i)  # noqa: E741 - winner and loser
        h = delta[w] - delta[l]
        if loss_type == "sigmoid":
            found.append(-(1 / (1 + (-beta * h).exp())).log())
        elif loss_type == "hinge":
            found.append((1 - beta * h) * float(beta * h < 1))
        else:
            found.append((h - 0.5 / beta) ** 2)
    return sum(found) / len(found)


def test_a_pair_is_ordered_by_reward() -> None:
    assert order([1.0, 0.5, -2.0, 3.0]) == [1, -1, -1, 1]
    assert order([1.0, 1.0, None, 3.0, 2.0, NAN, None, None]) == [0] * 8


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_the_loss_equals_the_reference_with_gradients(loss_type: Any, beta: float) -> None:
    import torch

    torch.manual_seed(0)
    logps = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(8, 5, dtype=torch.float64)
    mask = (torch.rand(8, 5) < 0.7).double()
    signs = order([3.0, 1.0, 2.0, 2.0, 0.0, 4.0, None, 1.0])
    plugin = Pairs(beta, loss_type)
    logged: dict[str, float] = {}
    plugin.log = logged.__setitem__  # type: ignore[method-assign]
    plugin.trainer = SimpleNamespace(accelerator=SimpleNamespace(gather=lambda x: x))
    sign = torch.tensor(signs, dtype=torch.float64)
    inputs = {"completion_mask": mask, "ref_per_token_logps": ref, "pair_sign": sign, "pair_weight": sign.abs() * 2}
    ours = plugin.batch_loss(logps, inputs)
    theirs = reference_loss(((logps - ref) * mask).sum(-1), signs, beta, loss_type)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    (mine,) = torch.autograd.grad(ours, logps)
    (wanted,) = torch.autograd.grad(theirs, logps)
    assert torch.allclose(mine, wanted, rtol=1e-12, atol=0)
    assert torch.all(mine[2:4] == 0)
    assert torch.all(mine[6:8] == 0)
    delta = ((logps - ref) * mask).sum(-1).detach()
    assert logged["rewards/chosen"] == pytest.approx(beta * float(delta[0] + delta[5]) / 2)
    assert logged["rewards/margins"] == pytest.approx(beta * float(delta[0] - delta[1] + delta[5] - delta[4]) / 2)
    assert 0 <= logged["rewards/accuracies"] <= 1


def test_a_larger_margin_lowers_the_loss_and_extreme_ones_stay_finite() -> None:
    import torch

    h = torch.linspace(-800, 800, 41, dtype=torch.float64)
    loss = pair_losses(h, 2.0, "sigmoid")
    assert torch.isfinite(loss).all()
    assert torch.all(loss[1:] <= loss[:-1])
    assert float(pair_losses(torch.zeros(1), 0.3, "sigmoid")) == pytest.approx(math.log(2))
    assert float(pair_losses(torch.tensor([5.0]), 0.1, "ipo")) == 0


@pytest.fixture(scope="module")
def ran(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three steps, with every micro-batch that reached the loss and the weights that it was computed with."""
    import copy

    folder = tmp_path_factory.mktemp("online")
    seen: list[Any] = []
    real = Pairs.batch_loss

    def spy(self: Pairs, logps: Any, inputs: dict[str, Any]) -> Any:
        loss = real(self, logps, inputs)
        twin = copy.deepcopy(self.trainer.model).eval()
        twin.__dict__.pop("forward", None)  # TRL 1.16 binds one to the model that it trains
        seen.append((twin, {**inputs}, float(loss.detach())))
        return loss

    Pairs.batch_loss = spy  # type: ignore[method-assign]
    try:
        trainer = start(tiny_model, folder, train__max_steps=3, train__gradient_accumulation_steps=2)
        trainer.train()
    finally:
        Pairs.batch_loss = real  # type: ignore[method-assign]
    return SimpleNamespace(trainer=trainer, seen=seen, out=folder / "out", model=tiny_model)


def test_pairs_stay_together_and_the_loss_is_that_of_the_texts(ran: Any) -> None:
    """Each micro-batch against forward passes of single rows without padding, by the policy and the model on disk."""
    import torch
    from transformers import AutoModelForCausalLM

    start_model = AutoModelForCausalLM.from_pretrained(ran.model).double().eval()
    assert len(ran.seen) == 6
    for policy, inputs, loss in (ran.seen[0], ran.seen[-1]):
        prompts = [
            tuple(ids[m.bool()].tolist()) for ids, m in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
        ]
        assert prompts[::2] == prompts[1::2]
        signs = inputs["pair_sign"].reshape(-1).tolist()
        assert [a + b for a, b in zip(signs[::2], signs[1::2], strict=True)] == [0] * (len(signs) // 2)
        deltas = []
        for i, prompt in enumerate(prompts):
            answer = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()]
            ids = torch.cat([torch.tensor(prompt), answer]).unsqueeze(0)
            sums = []
            for model in (policy.double(), start_model):
                logps = model(ids).logits[0, :-1].log_softmax(-1)
                sums.append(logps.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
            deltas.append((sums[0] - sums[1]).detach())
        assert loss == pytest.approx(float(reference_loss(deltas, [int(s) for s in signs], 0.1, "sigmoid")), abs=1e-5)
    assert ran.seen[0][2] == pytest.approx(math.log(2), abs=1e-6)
    assert ran.seen[-1][2] != pytest.approx(math.log(2), abs=1e-5)


def test_it_logs_the_loss_of_the_step_and_stores_the_order(ran: Any) -> None:
    from aligntune.utils.rollouts import read_rollouts

    losses = runs.logged(ran.out)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[2] == pytest.approx((ran.seen[4][2] + ran.seen[5][2]) / 2, abs=1e-6)
    assert runs.logged(ran.out, "pairs/kept")[0] == 1
    assert runs.logged(ran.out, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert "frac_reward_zero_std" in (ran.out / "metrics.jsonl").read_text()
    rows = read_rollouts(ran.out).to_pylist()
    assert len(rows) == 3 * 8
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        assert a["prompt"] == b["prompt"]
        assert (a["preference"] or 0) == ((a["reward"] > b["reward"]) - (a["reward"] < b["reward"]))


def test_without_an_order_nothing_is_learned(tiny_model: Path, tmp_path: Path) -> None:
    trainer = start(tiny_model, tmp_path, "same", train__max_steps=2, train__weight_decay=0.1)
    trainer.train()
    assert runs.logged(tmp_path / "out") == [0, 0]
    assert runs.logged(tmp_path / "out", "pairs/ties") == [1, 1]
    assert runs.logged(tmp_path / "out", "pairs/kept") == [0, 0]
    assert runs.same_weights(tmp_path / "out", tiny_model)


def test_rows_without_a_score_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    trainer = start(tiny_model, tmp_path, "some", train__max_steps=2, train__per_device_batch_size=16)
    trainer.train()
    shares = runs.logged(tmp_path / "out", "pairs/unscored")
    assert all(0 < s < 1 for s in shares)
    kept, ties = runs.logged(tmp_path / "out", "pairs/kept"), runs.logged(tmp_path / "out", "pairs/ties")
    assert [a + b + c for a, b, c in zip(shares, kept, ties, strict=True)] == pytest.approx([1, 1])
    assert runs.logged(tmp_path / "out")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_one_batch_equals_its_parts(tiny_model: Path, tmp_path: Path) -> None:
    """8 completions in one micro-batch, or in four of one pair each; some pairs have no score."""
    import torch

    for name, size, parts in (("whole", 8, 1), ("parts", 2, 4)):
        start(
            tiny_model,
            tmp_path / name,
            "some",
            train__max_steps=1,
            train__per_device_batch_size=size,
            train__gradient_accumulation_steps=parts,
            train__optimizer="sgd",
            train__learning_rate=0.1,
        ).train()
    whole, split = (runs.weights(tmp_path / n / "out") for n in ("whole", "parts"))
    assert runs.logged(tmp_path / "whole/out", "pairs/kept") == runs.logged(tmp_path / "parts/out", "pairs/kept")
    assert all(torch.allclose(whole[k], split[k], atol=1e-6) for k in whole)
    assert runs.logged(tmp_path / "whole/out")[0] == pytest.approx(runs.logged(tmp_path / "parts/out")[0], abs=1e-6)


def test_a_resumed_run_is_the_run_that_never_stopped(tiny_model: Path, tmp_path: Path) -> None:
    start(tiny_model, tmp_path / "whole", train__max_steps=4).train()
    first = start(tiny_model, tmp_path / "cut", train__max_steps=4, train__save_steps=2)
    real = first.record

    def stop(step: int, logs: dict[str, Any]) -> None:
        real(step, logs)
        if step == 3:
            raise KeyboardInterrupt

    first.record = stop
    with pytest.raises(KeyboardInterrupt):
        first.train()
    start(tiny_model, tmp_path / "cut", train__max_steps=4, train__save_steps=2).train(resume="latest")
    assert runs.same_weights(tmp_path / "whole/out", tmp_path / "cut/out")
    assert runs.logged(tmp_path / "whole/out") == runs.logged(tmp_path / "cut/out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__per_device_batch_size": 3}, r"train\.per_device_batch_size.*3 is odd"),
        ({"rewards": []}, "rewards.*is empty"),
        ({"algo": {"name": "online_dpo", "num_generations": 4}}, r"num_generations.*grpo"),
        ({"algo": {"name": "online_dpo", "beta": 0}}, r"algo\.beta"),
        ({"generation__max_completion_length": 60}, r"model\.max_seq_length"),
    ],
)
def test_contradictions_are_refused(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    raw = runs.plain("grpo", tiny_model, tmp_path, **{"algo": {"name": "online_dpo"}, **changes})
    with pytest.raises(ConfigurationError) as caught:
        build_config(raw)
    import re

    assert re.search(said, f"{caught.value.message} {caught.value.hint}", re.S)
