"""What the quickstart found, as plain values, as a table for the terminal, and as `report.html`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.quickstart.story import StageResult, Story

ABOUT = {
    "base": "The embedded base model: it can add, and has never seen the answer format.",
    "sft": "Supervised fine-tuning on right answers, some given at once and some step by step.",
    "grpo": "Policy optimisation from SFT: eight answers to each problem, right ones reinforced.",
    "dpo": "Preference optimisation from SFT: right answers preferred to wrong ones, on its own samples.",
}
TITLES = {"base": "Base", "sft": "SFT", "grpo": "GRPO", "dpo": "DPO"}
SHOWN_SAMPLES = 3


def summarize(story: Story, preference: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Figures of all stages as plain values."""
    from aligntune.utils.device import peak_rss_bytes

    stages = [_stage(story, stage, preference) for stage in story.stages.values()]
    return {
        "seed": story.seed,
        "fast": story.fast,
        "problems": len(story.stages["base"].items),
        "stages": stages,
        "preference": preference,
        "samples": _samples(story),
        "seconds": round(seconds, 1),
        "peak_memory": peak_rss_bytes(),
        "report": str(story.out / "report.html"),
    }


def _stage(story: Story, stage: StageResult, preference: dict[str, Any]) -> dict[str, Any]:
    from aligntune.eval.stats import paired_difference, wilson_interval

    accuracy = wilson_interval(sum(stage.correct), len(stage.correct))
    row: dict[str, Any] = {
        "name": stage.name,
        "parent": stage.parent,
        "accuracy": {"value": accuracy.estimate, "low": accuracy.low, "high": accuracy.high},
        "mean_reward": sum(item["reward"] for item in stage.items) / len(stage.items),
        "step_by_step": sum(_worked(item) for item in stage.items) / len(stage.items),
        "seconds": round(stage.seconds, 1),
        "peak_memory": stage.peak_memory or None,
    }
    if stage.parent:
        difference = paired_difference(stage.correct, story.stages[stage.parent].correct)
        row["difference"] = {"value": difference.difference, "low": difference.low, "high": difference.high}
    if stage.name == "dpo":
        row["preference_accuracy"] = preference["dpo"]
    return row


def _worked(item: dict[str, Any]) -> bool:
    """Whether an answer in the right format has something before its last line."""
    return bool(item["rewards/answer_format"]) and "\n" in item["output"].strip()


def _samples(story: Story) -> list[dict[str, Any]]:
    """The first problems of the test file, with every stage's answer."""
    found = []
    for i in range(SHOWN_SAMPLES):
        items = {name: stage.items[i] for name, stage in story.stages.items()}
        first = items["base"]
        found.append(
            {
                "prompt": first["prompt"][-1]["content"],
                "reference": first["reference"],
                "answers": {
                    name: {"text": item["output"], "correct": bool(item["rewards/math_correctness"])}
                    for name, item in items.items()
                },
            }
        )
    return found


def tell(story: Story, data: dict[str, Any]) -> str:
    """Write the report, and return the text for the terminal."""
    report = write_report(story, data)
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
        f"Recipes to change and run alone: {story.out / 'recipes'}; as stages: aligntune run stages.yaml there",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    difference = ""
    if "difference" in row:
        d = row["difference"]
        sign = f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
        difference = f"{sign} vs {TITLES[row['parent']]}"
    memory = f"{row['peak_memory'] / 1e6:.0f} MB" if row["peak_memory"] else ""
    return (
        f"{TITLES[row['name']]:6} {_interval(row['accuracy']):>22} {difference:>32} {row['mean_reward']:7.2f} "
        f"{row['step_by_step']:12.0%} {row['seconds']:5.0f} s {memory:>8}"
    )


def _interval(found: dict[str, float]) -> str:
    return f"{100 * found['value']:.1f}% [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def write_report(story: Story, data: dict[str, Any]) -> str:
    """`report.html` over all stages; returns its path."""
    from aligntune.report import build_story
    from aligntune.report.story import Answer, Interval, Sample, Stage

    def interval(found: dict[str, float] | None) -> Interval | None:
        return Interval(found["value"], found["low"], found["high"]) if found else None

    stages = [
        Stage(
            TITLES[row["name"]],
            run_dir=story.stages[row["name"]].run_dir,
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
        build_story("Quickstart", stages, story.out / "report.html", lead=lead, samples=samples, measured_on=measured)
    )
