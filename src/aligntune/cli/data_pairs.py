"""`aligntune data pairs`: preference pairs from a model, ranked by rewards, a reward model or a judge.

aligntune data pairs pairs.yaml select.margin=0.2
aligntune data pairs --model runs/sft --dataset prompts.jsonl --reward math_correctness --out pairs.jsonl
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments

if TYPE_CHECKING:
    from aligntune.data.pairs import PairsConfig

FLAGS = {
    "model": "model.name_or_path",
    "dataset": "dataset.name",
    "preset": "dataset.preset",
    "split": "dataset.split",
    "max_prompts": "dataset.max_samples",
    "reward": "rewards",
    "reward_model": "ranking.reward_model",
    "judge_url": "judge.url",
    "judge_model": "judge.model",
    "samples": "sampling.num_samples",
    "temperature": "sampling.temperature",
    "max_new_tokens": "sampling.max_new_tokens",
    "batch_size": "sampling.batch_size",
    "select": "select.pairs",
    "margin": "select.margin",
    "per_prompt": "select.per_prompt",
    "max_length_ratio": "select.max_length_ratio",
    "out": "output",
    "seed": "seed",
}
"""Where each flag goes."""


@click.command("pairs", short_help="Make preference pairs from a model.")
@click.argument("arguments", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Folder or hub id of the model that answers.")
@click.option("--dataset", metavar="NAME", help="Hub id, file or folder of the prompts.")
@click.option("--preset", metavar="NAME", help="Known data set's columns and template.")
@click.option("--split", metavar="NAME", help="Split of the data set.")
@click.option("--max-prompts", type=int, help="Draw this many prompts.")
@click.option("--reward", metavar="NAME", multiple=True, help="Rank by this reward; may be given again.")
@click.option("--reward-model", metavar="PATH", help="Rank by a reward model.")
@click.option("--judge-url", metavar="URL", help="Rank by a judge that compares answers in both orders.")
@click.option("--judge-model", metavar="NAME", help="The judge's name at its endpoint.")
@click.option("--samples", type=int, help="Answers to each prompt.  [default: 5]")
@click.option("--temperature", type=float, help="Temperature of the sampling.  [default: 0.8]")
@click.option("--max-new-tokens", type=int, help="Longest answer in tokens.  [default: 256]")
@click.option("--batch-size", type=int, help="Sequences per batch.  [default: 8]")
@click.option("--select", metavar="WHICH", help="best_worst, best_random or all.  [default: best_worst]")
@click.option("--margin", type=float, help="Least difference of two scores.  [default: 0]")
@click.option("--per-prompt", type=int, help="Most pairs of a prompt.  [default: 1; all: no limit]")
@click.option("--max-length-ratio", type=float, metavar="X", help="Longer answer at most X times the shorter one.")
@click.option("--out", metavar="FILE", help="File to write, .jsonl or .parquet.")
@click.option("--seed", type=int, help="Seed of every draw.  [default: 42]")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@shared
def command(settings: Settings, arguments: tuple[str, ...], resume: bool, **flags: Any) -> Output:
    """Sample answers to the prompts of a data set, rank them, and write pairs that differ clearly.

    FILE has `model`, `dataset`, `output`, what ranks (`rewards`, `ranking.reward_model` or `judge`), and `sampling` and
    `select`; without it, flags describe the simple case. KEY is a dotted path: sampling.top_p=0.95.
    """
    from aligntune.data.pairs import PairMaker
    from aligntune.data.pairs.report import described

    maker = PairMaker(build(arguments, flags))
    try:
        result = maker.make(resume=resume)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(maker.resume_hint) from stop
    lines = [described(result.report), f"pairs    {result.path}", f"report   {maker.report_path}"]
    return Output(result.report, "\n".join(lines))


def build(arguments: tuple[str, ...], flags: dict[str, Any]) -> PairsConfig:
    """The checked configuration of a command line.

    Raises:
        ConfigurationError: with every fault.
    """
    from aligntune.core.config.reading import read_yaml, set_key
    from aligntune.data.pairs import build_pairs_config

    file, overrides = split_arguments(arguments)
    raw: dict[str, Any] = read_yaml(file) if file else {}
    for flag, value in flags.items():
        if value not in (None, ()):
            set_key(raw, FLAGS[flag], list(value) if flag == "reward" else value)
    return build_pairs_config(raw, overrides, file or "")
