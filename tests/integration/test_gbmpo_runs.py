"""GBMPO and its neural mirror map in whole runs: their loss, their cost in forward passes, and going on after a stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import policy
import runs
from aligntune.algorithms.gbmpo import MAP_FILE

CASES = {
    "grpo": {"name": "grpo", "beta": 0.04},
    "prob_l2": {"name": "gbmpo"},
    "l2_kl": {"name": "gbmpo", "divergence": "l2_kl"},
    "neural": {"name": "neural_mirror"},
}


def trainer(case: str, model: Path, folder: Path, **changes: Any) -> Any:
    algo = {**CASES[case], "num_generations": 4, **changes.pop("algo", {})}
    return runs.trainer("grpo", model, folder, algo=algo, **changes)


def objective(
    name: str, weight: float, beta: float, loss_type: str, inputs: dict[str, Any], logps: Any, mirror: Any
) -> Any:
    """The whole loss from the paper's formula: clipped policy term, lambda D, beta k3, averaged as `loss_type` says."""
    ratio, ref, mask = (
        (logps - inputs["old_per_token_logps"]).exp(),
        inputs["ref_per_token_logps"],
        inputs["completion_mask"],
    )
    adv, p, q, delta = inputs["advantages"][:, None], logps.exp(), ref.exp(), logps - ref
    kinds = {"prob_l2": (p - q) ** 2 / 2, "l2": delta**2 / 2, "generalized_kl": p * delta - p + q}
    d = mirror.divergence(logps, ref) if name == "neural" else kinds[name.replace("2_kl", "2")]
    token = weight * d + beta * ((-delta).exp() + delta - 1)
    token = (token - (ratio * adv).minimum(ratio.clamp(0.8, 1.2) * adv)) * mask
    if loss_type == "grpo":
        return (token.sum(1) / mask.sum(1)).mean()
    return token.sum() / (8 * 12 if loss_type == "dr_grpo" else mask.sum())


@pytest.mark.parametrize(
    ("name", "loss_type"),
    [
        ("prob_l2", "grpo"),
        ("prob_l2_kl", "dapo"),
        ("l2", "bnpo"),
        ("l2_kl", "grpo"),
        ("generalized_kl", "dr_grpo"),
        ("neural", "dapo"),
    ],
)
def test_the_whole_loss_and_its_gradient_are_the_formula(
    name: str, loss_type: str, tiny_model: Path, tmp_path: Path
) -> None:
    """On a batch that is off-policy, with completions of different lengths, in float64."""
    from aligntune.algorithms.mirror_map import MirrorMap

    own = {"algo__divergence": name, "algo__divergence_weight": 0.7, "algo__loss_type": loss_type}
    own |= {"algo__beta": 0.3} if name.endswith("2_kl") else {}
    hf = policy.library_trainer("gbmpo", tiny_model, tmp_path, **own, train__per_device_batch_size=8)
    inputs = policy.rollout(hf)
    found = hf.compute_loss(hf.model, inputs)
    beta = 0.3 if name.endswith("2_kl") else 0.0
    expected = objective(name, 0.7, beta, loss_type, inputs, policy.logps_of(hf, inputs), MirrorMap.random(3))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=policy.precision())
    assert policy.close(policy.gradients(hf, found), policy.gradients(hf, expected), policy.precision())
    assert hf.beta == (beta or 1.0)  # put back, so that the reference is scored again


def forwards(case: str, model: Path, folder: Path, patch: pytest.MonkeyPatch) -> int:
    """Forward passes of models in two steps, generation included."""
    from transformers import LlamaForCausalLM

    count = [0]
    real = LlamaForCausalLM.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return real(self, *args, **kwargs)

    with patch.context() as local:
        local.setattr(LlamaForCausalLM, "forward", counted)
        trainer(case, model, folder / case, train__max_steps=2, train__learning_rate=1e-9).train()
    return count[0]


def test_no_forward_pass_is_made_beyond_those_of_grpo(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a learning rate of almost 0 all runs sample the same completions."""
    counts = {case: forwards(case, tiny_model, tmp_path, monkeypatch) for case in CASES}
    assert counts["grpo"] > 4
    assert set(counts.values()) == {counts["grpo"]}


@pytest.mark.parametrize("case", ["prob_l2", "neural"])
def test_the_loss_is_the_weighted_divergence_where_advantages_cancel(
    case: str, tiny_model: Path, tmp_path: Path
) -> None:
    """While every update is on-policy the policy term is 0 in its value, and equal lengths make both means one."""
    run = trainer(case, tiny_model, tmp_path, algo={"divergence_weight": 1000.0}, train__learning_rate=1e-2)
    run.train()
    out = run.config.output_dir
    assert runs.logged(out, "completions/min_length") == runs.logged(out, "completions/max_length")
    found = runs.logged(out, "divergence")
    assert found[0] == 0
    assert all(value > 0 for value in found[1:])
    assert runs.logged(out, "loss") == pytest.approx([1000 * value for value in found], rel=1e-3, abs=1e-6)
    assert runs.logged(out, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert all(value > 0 for value in runs.logged(out, "kl")[1:])


def test_a_strong_divergence_keeps_the_policy_near_its_reference(tiny_model: Path, tmp_path: Path) -> None:
    far, near = (
        runs.logged(
            _trained("l2_kl", tiny_model, tmp_path / str(weight), algo={"divergence_weight": weight, "beta": 1e-9}),
            "kl",
        )
        for weight in (1e-6, 30.0)
    )
    assert near[-1] < 0.5 * far[-1]


def _trained(case: str, model: Path, folder: Path, **changes: Any) -> str:
    run = trainer(case, model, folder, train__learning_rate=3e-3, train__max_steps=8, **changes)
    run.train()
    return str(run.config.output_dir)


@pytest.mark.parametrize("case", ["prob_l2", "neural"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    case: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    from aligntune.algorithms.mirror_map import MirrorMap

    straight = trainer(case, tiny_model, tmp_path / "straight")
    straight.train()
    stopped = trainer(case, tiny_model, tmp_path / "stopped")
    record = stopped.record

    def stop(at: int, logs: Any) -> None:
        record(at, logs)
        if at == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stopped, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    checkpoint = Path(stopped.state.checkpoint_path)
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] < 4
    if case == "neural":
        kept = load_file(checkpoint / "aligntune_state.safetensors")["mirror_map"]
        assert torch.equal(kept, MirrorMap.load(tmp_path / "straight" / "out" / MAP_FILE).flat())
        assert torch.equal(kept, MirrorMap.random(3).flat())  # drawn from the run's seed
    trainer(case, tiny_model, tmp_path / "stopped").train(resume="latest")
    assert runs.same_weights(stopped.config.output_dir, straight.config.output_dir)
    for key in ("loss", "divergence", "kl"):
        assert runs.logged(stopped.config.output_dir, key) == runs.logged(straight.config.output_dir, key)


def test_a_map_from_a_file_is_used_and_saved_beside_the_model(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from aligntune.algorithms.mirror_map import MirrorMap

    given = MirrorMap.random(99)
    path = given.save(tmp_path / "given.safetensors")
    runs_of = [
        trainer(case, tiny_model, tmp_path / case, algo=algo, train__max_steps=3, train__learning_rate=1e-2)
        for case, algo in (
            ("neural", {"mirror_path": str(path)}),
            ("prob_l2", {"divergence": "neural", "mirror_path": str(path)}),
        )
    ]
    for run in runs_of:
        run.train()
        assert torch.equal(MirrorMap.load(Path(run.config.output_dir) / MAP_FILE).flat(), given.flat())
    assert runs.same_weights(*(run.config.output_dir for run in runs_of))
    drawn = trainer("neural", tiny_model, tmp_path / "drawn", train__max_steps=3, train__learning_rate=1e-2)
    drawn.train()
    assert (
        runs.logged(drawn.config.output_dir, "divergence")[1]
        != runs.logged(runs_of[0].config.output_dir, "divergence")[1]
    )


# ---- the other backend ---------------------------------------------------------------------------------------------

UNSLOTH = """
    import runs
    from pathlib import Path
    result = {}
    for case, algo in given["cases"].items():
        folder = Path(given["folder"]) / case
        trainer = runs.trainer("grpo", given["model"], folder, backend="unsloth", algo=algo, model__peft=given["peft"].get(case),
                               train__save_steps=1, train__max_steps=2, train__learning_rate=1e-3)
        trainer.train()
        out = trainer.config.output_dir
        result[case] = {key: runs.logged(out, key) for key in ("loss", "reward", "divergence", "kl", "grad_norm")}
        result[case]["files"] = sorted(str(p.relative_to(out)) for p in Path(out).rglob("*.safetensors"))
"""
ADAPTED = {"prob_l2_lora": {"r": 4, "alpha": 8}}


def test_the_unsloth_backend_trains_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """Two steps and their checkpoints: equal losses, divergences and gradients up to rounding."""
    from test_unsloth import INSTALLED, python

    if not INSTALLED:
        pytest.skip("unsloth is not installed")
    cases = {c: {**CASES[c], "num_generations": 4, "divergence_weight": 5.0} for c in ("l2_kl", "neural")}
    cases["prob_l2_lora"] = {**CASES["prob_l2"], "num_generations": 4, "divergence_weight": 5.0}
    (tmp_path / "cwd").mkdir()
    theirs = python(UNSLOTH, tmp_path / "cwd", model=tiny_model, folder=tmp_path / "unsloth", cases=cases, peft=ADAPTED)
    for case, algo in cases.items():
        ours = runs.trainer(
            "grpo",
            tiny_model,
            tmp_path / case,
            algo=algo,
            model__peft=ADAPTED.get(case),
            train__max_steps=2,
            train__learning_rate=1e-3,
        )
        ours.train()
        out = ours.config.output_dir
        for key in ("loss", "reward", "divergence", "kl"):
            first = 1 if case in ADAPTED else 2  # adapters begin at other random weights there
            assert theirs[case][key][:first] == pytest.approx(runs.logged(out, key)[:first], abs=1e-5), (case, key)
        assert theirs[case]["divergence"][1] > 0
        assert any(name.startswith("checkpoint-2/") for name in theirs[case]["files"])
    assert {"mirror/map.safetensors", "checkpoint-2/aligntune_state.safetensors"} <= set(theirs["neural"]["files"])
