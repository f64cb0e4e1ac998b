"""What the quickstart found, as plain values, as a table for the terminal, and as `report.html`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.quickstart.story import Quickstart
    from aligntune.stages import StagesResult

Items = dict[str, list[dict[str, Any]]]
ABOUT = {
    "base": "The embedded base model: it can add, and has never seen the answer format.",
    "sft": "Supervised fine-tuning on right answers, some given at once and some step by step.",
    "grpo": "Policy optimisation from SFT: eight answers to each problem, right ones reinforced.",
    "dpo": "Preference optimisation from SFT: right answers preferred to wrong ones, on its own samples.",
}
TITLES = {"base": "Base", "sft": "SFT", "grpo": "GRPO", "dpo": "DPO"}
PARENTS = {"sft": "base", "grpo": "sft", "dpo": "sft"}
CORRECT = "rewards/math_correctness"
"""The component of the evaluation's reward that says whether an answer is right."""
SHOWN_SAMPLES = 3


def summarize(quickstart: Quickstart, result: StagesResult, begun: float) -> dict[str, Any]:
    """Figures of all models as plain values; read from what the stages wrote.

    Args:
        quickstart: whose stages these are.
        result: of the stages.
        begun: when the quickstart began, on `time.monotonic`.
    """
    from aligntune.utils.device import peak_rss_bytes

    scores = Path(result["scores"].folder)
    items: Items = {name: _items(next(scores.glob(f"*-{name}")), "sums") for name in TITLES}
    preference = _preference(result)
    return {
        "seed": quickstart.seed,
        "fast": quickstart.fast,
        "problems": len(items["base"]),
        "stages": [_model(name, items, result, preference) for name in TITLES],
        "preference": preference,
        "samples": _samples(items),
        "seconds": round(time.monotonic() - begun, 1),
        "peak_memory": peak_rss_bytes(),
        "report": str(quickstart.out / "report.html"),
    }


def _items(folder: str | Path, task: str) -> list[dict[str, Any]]:
    """The items of an evaluation."""
    from aligntune.eval import EvalResult

    return EvalResult.load(folder).tasks[task].items


def _model(name: str, items: Items, result: StagesResult, preference: dict[str, Any]) -> dict[str, Any]:
    from aligntune.eval.stats import paired_difference

    own, parent = items[name], PARENTS.get(name)
    made = result.stages.get(name)
    row: dict[str, Any] = {
        "name": name,
        "parent": parent,
        "accuracy": _share([bool(item[CORRECT]) for item in own]),
        "mean_reward": sum(item["reward"] for item in own) / len(own),
        "step_by_step": sum(_worked(item) for item in own) / len(own),
        "seconds": round(made.seconds, 1) if made else None,
        "peak_memory": made.memory if made else None,
    }
    if parent:
        right, before = ([float(item[CORRECT]) for item in items[model]] for model in (name, parent))
        difference = paired_difference(right, before)
        row["difference"] = {"value": difference.difference, "low": difference.low, "high": difference.high}
    if name == "dpo":
        row["preference_accuracy"] = preference["dpo"]
    return row


def _preference(result: StagesResult) -> dict[str, Any]:
    """How DPO and its SFT parent rank the held-out pairs, by every measure that the evaluation has."""
    dpo, sft = (_items(result[stage].folder, "pairs") for stage in ("ranking", "own_ranking"))
    return {
        "pairs": len(dpo),
        "dpo": _share([i["chosen_reward"] > i["rejected_reward"] for i in dpo]),
        "sft_ranking": _share([i["chosen_logp"] > i["rejected_logp"] for i in sft]),
        "sft_ranking_per_token": _share([i["chosen_logp_per_token"] > i["rejected_logp_per_token"] for i in sft]),
    }


def _share(hits: list[bool]) -> dict[str, float]:
    """A proportion with its Wilson interval, as plain values."""
    from aligntune.eval.stats import wilson_interval

    found = wilson_interval(sum(hits), len(hits))
    return {"value": found.estimate, "low": float(found.low or 0.0), "high": float(found.high or 1.0)}


def _worked(item: dict[str, Any]) -> bool:
    """Whether an answer in the right format has something before its last line."""
    return bool(item["rewards/answer_format"]) and "\n" in item["output"].strip()


def _samples(answers: Items) -> list[dict[str, Any]]:
    """The first problems of the test file, with every model's answer."""
    found = []
    for i in range(SHOWN_SAMPLES):
        items = {name: own[i] for name, own in answers.items()}
        first = items["base"]
        found.append(
            {
                "prompt": first["prompt"][-1]["content"],
                "reference": first["reference"],
                "answers": {
                    name: {"text": item["output"], "correct": bool(item[CORRECT])} for name, item in items.items()
                },
            }
        )
    return found


def tell(quickstart: Quickstart, data: dict[str, Any]) -> str:
    """Write the report, and return the text for the terminal."""
    report = write_report(quickstart, data)
    lines = [
        f"{data['problems']} held-out problems, greedy answers, seed {data['seed']}. Intervals are 95%.",
        "",
        f"{'stage':6} {'accuracy':>22} {'against parent (paired)':>32} {'reward':>7} {'steps shown':>12} "
        f"{'time':>7} {'memory':>8}",
    ]
    for row in data["stages"]:
        lines.append(_line(row))
    p = data["preference"]
    lines += [
        "",
        f"preference accuracy on {p['pairs']} held-out pairs: DPO {_interval(p['dpo'])}, "
        f"SFT's own ranking {_interval(p['sft_ranking'])} by log-probability,",
        f"  {_interval(p['sft_ranking_per_token'])} by log-probability per token",
    ]
    for sample in data["samples"]:
        lines += ["", f"{sample['prompt']}  (right: {sample['reference']})"]
        for name, answer in sample["answers"].items():
            mark = "right" if answer["correct"] else "wrong"
            lines.append(f"  {TITLES[name]:5} {mark}  {answer['text'].strip()!r}")
    lines += [
        "",
        f"{data['seconds']:.0f} s in all. Report: {report}",
        f"Recipes to change and run alone: {quickstart.file.parent}; all of them: aligntune run {quickstart.file}",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    difference = ""
    if "difference" in row:
        d = row["difference"]
        sign = f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
        difference = f"{sign} vs {TITLES[row['parent']]}"
    memory = f"{row['peak_memory'] / 1e6:.0f} MB" if row["peak_memory"] else ""
    seconds = f"{row['seconds']:.0f} s" if row["seconds"] else ""
    return (
        f"{TITLES[row['name']]:6} {_interval(row['accuracy']):>22} {difference:>32} {row['mean_reward']:7.2f} "
        f"{row['step_by_step']:12.0%} {seconds:>7} {memory:>8}"
    )


def _interval(found: dict[str, float]) -> str:
    return f"{100 * found['value']:.1f}% [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def write_report(quickstart: Quickstart, data: dict[str, Any]) -> str:
    """`report.html` over all stages; returns its path."""
    from aligntune.report import build_story
    from aligntune.report.story import Answer, Interval, Sample, Stage

    def interval(found: dict[str, float] | None) -> Interval | None:
        return Interval(found["value"], found["low"], found["high"]) if found else None

    stages = [
        Stage(
            TITLES[row["name"]],
            run_dir=quickstart.out / row["name"] if row["parent"] else None,
            about=ABOUT[row["name"]],
            accuracy=interval(row["accuracy"]),
            difference=interval(row.get("difference")),
            parent=TITLES[row["parent"]] if row["parent"] else None,
            mean_reward=row["mean_reward"],
            preference_accuracy=interval(row.get("preference_accuracy")),
            seconds=row["seconds"],
            memory_bytes=row["peak_memory"],
        )
        for row in data["stages"]
    ]
    samples = [
        Sample(
            sample["prompt"],
            [Answer(TITLES[n], a["text"], a["correct"]) for n, a in sample["answers"].items()],
            reference=sample["reference"],
        )
        for sample in data["samples"]
    ]
    ranking = data["preference"]
    lead = (
        "A model of 0.7 million parameters learns which way of answering earns more. The base model can add numbers "
        "but does not know the answer format; SFT teaches it with two ways of answering, at once or step by step; GRPO "
        "and DPO both start from SFT. On the held-out pairs, DPO's implicit reward agrees with the reward in "
        f"{_interval(ranking['dpo'])}; SFT's own ranking does in {_interval(ranking['sft_ranking'])} by the "
        f"log-probability of the answer, and in {_interval(ranking['sft_ranking_per_token'])} by that per token."
    )
    measured = (
        f"{data['problems']} held-out problems, greedy decoding, seed {data['seed']}; "
        f"preference accuracy on {ranking['pairs']} held-out pairs"
    )
    return str(
        build_story(
            "Quickstart", stages, quickstart.out / "report.html", lead=lead, samples=samples, measured_on=measured
        )
    )
