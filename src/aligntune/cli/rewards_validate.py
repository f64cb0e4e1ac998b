"""`aligntune rewards validate`: what a reward model is worth on prompts that it was not trained on.

    aligntune rewards validate runs/reward-model --data test_pairs.jsonl
    aligntune rewards validate runs/reward-model --data answers.jsonl --answers samples --scorer math_correctness

The exit code is 0 for the verdict `pass`, else 1.
"""

from __future__ import annotations

from typing import Any

import click

from aligntune.cli.console import Output, Settings, shared
from aligntune.errors import ConfigurationError


@click.command(short_help="Judge a reward model, with intervals and a verdict.")
@click.argument("model")
@click.option("--data", metavar="NAME", required=True, help="Pairs, or answers: hub id, file or folder.")
@click.option("--preset", metavar="NAME", help="Known data set's columns and template.")
@click.option("--format", "form", metavar="NAME", help="What the rows are; found from the columns without it.")
@click.option("--split", metavar="NAME", help="Split of the data set, or a slice such as test[:10%].")
@click.option("--max-samples", type=click.IntRange(1), help="Draw this many rows.")
@click.option("--answers", metavar="COLUMN", help="Column with each row's answer or list of answers.")
@click.option("--human", metavar="COLUMN", help="Column with people's scores of the answers; needs --answers.")
@click.option("--reward", metavar="NAME", multiple=True, help="Teacher to compare with, in place of the stored ones.")
@click.option("--scorer", metavar="NAME", multiple=True, help="Independent reward that judges best-of-n.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Answers per forward pass.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw and the bootstrap.")
@shared
def command(settings: Settings, model: str, **options: Any) -> Output:
    """Judge the reward model MODEL (a folder or hub id) on pairs, or on answers that reward functions label.

    Pairs come from the data, from people's scores (--human), or from the rewards that the model was trained on (or
    --reward). Prompts that the model was trained on are left out.
    """
    from aligntune.rewards.training import RewardModelValidator

    validator = RewardModelValidator(
        model, batch_size=options["batch_size"], device=options["device"], seed=options["seed"]
    )
    data, validator.independent = _data(validator.record, options)
    report = validator.validate(data)
    return Output(report.to_dict(), report.text(), exit_code=0 if report.passed else 1)


def _data(record: dict[str, Any], options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The data, and the names of the independent scorers' components."""
    from aligntune.core.config.composing import CompositionConfig
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.sections import DatasetConfig, JudgeConfig, RewardConfig
    from aligntune.rewards.composite import build_rewards
    from aligntune.rewards.training.reading import read_validation

    given = {"name": options["data"], "preset": options["preset"], "format": options["form"]}
    given |= {"split": options["split"], "max_samples": options["max_samples"]}
    source = parse_section(DatasetConfig, {k: v for k, v in given.items() if v is not None}, "--data")
    if options["human"] and not options["answers"]:
        raise ConfigurationError("--human needs --answers", hint="name the column with the answers that were scored")
    named = [RewardConfig(type=name) for name in options["reward"]]
    teachers = named or [parse_section(RewardConfig, raw, "reward_model.json") for raw in record.get("rewards", [])]
    if options["scorer"] and not teachers and not options["human"] and options["answers"]:
        raise ConfigurationError(
            "--scorer judges best-of-n, and nothing labels the answers: this model was trained on pairs",
            hint="add --human COLUMN, or --reward NAME",
        )
    weight = 0.0 if teachers else 1.0  # without teachers nothing reads the total, and one of weights 0 is refused
    scorers = [
        RewardConfig(type=name, weight=weight, name=f"independent {name.rpartition(':')[2]}")
        for name in options["scorer"]
    ]
    stored = {} if named else record  # other teachers have a rule and a judge of their own
    rule = stored.get("composition") and parse_section(CompositionConfig, stored["composition"], "reward_model.json")
    judge = stored.get("judge") and parse_section(JudgeConfig, stored["judge"], "reward_model.json")
    rewards = build_rewards([*teachers, *scorers], composition=rule, judge=judge) if teachers or scorers else None
    column = options["answers"] or (record.get("answers") if not named else None)
    data = read_validation(source, rewards, answers=column, human=options["human"], seed=options["seed"])
    return data, [c.name for c in scorers if c.name is not None]
