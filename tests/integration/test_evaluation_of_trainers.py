"""Evaluation while each trainer trains: held-out rows and a task at each evaluation, with intervals; the best is kept.

SFT, DPO, GRPO and GSPO's kin have theirs in test_evaluation_in_training.py; reward models in test_reward_training.py,
classifiers in test_classification.py, and the search of mirror maps in test_meta_es_runs.py. Three of another make each
are in the default suite, the others are slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.utils.files import read_lines
from aligntune.utils.run_folder import read_manifest

REWARD = '''
from aligntune.rewards import reward

@reward("odd_codes_of_NAME", range=(0.0, 1.0))
def odd_codes(text: str) -> float:
    """Something that varies from text to text."""
    return sum(map(ord, text)) % 7 / 6
'''
SHORT = {"max_prompt_length": 32, "max_completion_length": 8}
GROUPS: dict[str, Any] = {"rewards": True, "generation": SHORT}
CASES: dict[str, dict[str, Any]] = {
    "kto": {},
    "ppo": GROUPS,
    "online_dpo": GROUPS,
    "orpo": {},
    "cpo": {},
    "simpo": {},
    "gkd": {"algo__lmbda": 0.0},
    "spin": {"algo__rounds": 1, "generation": {"max_completion_length": 8}},
    **{
        name: {**GROUPS, "algo__num_generations": 4}
        for name in ("rloo", "dapo", "dr_grpo", "gspo", "cispo", "gbmpo", "neural_mirror", "reinforce_pp")
    },
    "counterfactual_grpo": {**GROUPS, "algo__num_generations": 4, "algo__answer_markers": list("abcdefgh ")},
    "pace": GROUPS,
}
PRIMARY = {"kto": "eval_rewards/auc", "orpo": "eval_rewards/accuracies", "gkd": "eval_nll"}
PRIMARY |= dict.fromkeys(("cpo", "simpo"), "eval_rewards/accuracies")
WITHOUT = {"eval_rows", "eval_tokens", "eval_loss"}
"""Counts, and the loss of KTO."""


def keeps(name: str) -> str:
    """Some that sample cannot go on from every step, and so write no checkpoint at every evaluation."""
    return "model" if "rewards" in CASES[name] else "checkpoint"


def trainer(name: str, model: Path, folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    held = {"kto": runs.LABELLED, **dict.fromkeys(runs.PAIRED, runs.PAIRS)}.get(name, runs.SFT_ROWS)
    text = runs.write_rows(folder / "text.jsonl", runs.SFT_ROWS[:4])
    changes = dict(CASES[name])
    if changes.pop("rewards", False):
        (folder / "odd.py").write_text(REWARD.replace("NAME", name), encoding="utf-8")
        changes["rewards"] = [{"type": f"{folder / 'odd.py'}:odd_codes"}]
    if name == "gkd":
        changes["algo__teacher"] = str(model)
    task = {"name": "text", "kind": "perplexity", "likelihood_of": "completion", "dataset": str(text)}
    given = {
        "train__max_steps": 2, "logging__samples": 0, "evaluation__every": 1,
        "evaluation__dataset": {"name": str(runs.write_rows(folder / "held.jsonl", held[:8]))},
        "evaluation__tasks": [task],
    }  # fmt: skip
    if name != "spin":  # each of its rounds ends with its last weights
        given["train__keep_best"] = keeps(name)
    return runs.trainer(name, model, folder, **given, **changes)


@pytest.mark.parametrize(
    "name", [n if n in ("kto", "ppo", "online_dpo") else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_every_trainer_evaluates_and_keeps_its_best(name: str, tiny_model: Path, tmp_path: Path) -> None:
    run = trainer(name, tiny_model, tmp_path)
    result = run.train()
    out = Path(run.config.output_dir)
    rows = read_lines(out / "evaluations.jsonl")
    assert [(row["step"], row["task"]) for row in rows] == [(s, t) for s in (1, 2) for t in (None, "text")]
    for row in rows:
        for key, metric in row["metrics"].items():
            if metric["low"] is None:
                assert key in WITHOUT or row["task"] is not None or metric["value"] in (0.0, 1.0), key
            else:
                assert metric["low"] <= metric["value"] <= metric["high"], key
    if name == "spin":
        assert result.best is None
        return
    best = result.best
    assert best["metric"] == PRIMARY.get(name, "eval_reward")  # never the loss
    assert best == read_manifest(out)["best"]
    values = runs.logged(out, best["metric"])
    assert best["value"] == (min if best["mode"] == "min" else max)(values)
    assert best["step"] == values.index(best["value"]) + 1
    if keeps(name) == "model":
        assert best["model"] == str(out.absolute())
    else:
        assert (out / f"checkpoint-{best['step']}").is_dir()
    assert {best["metric"], "eval/text/perplexity"} - {"eval_rewards/auc"} <= set(result.intervals)
