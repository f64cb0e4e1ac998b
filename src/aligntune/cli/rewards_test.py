"""`aligntune rewards test`: whether rewards can be trusted on a data set, with an exit code for CI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared, table
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.rewards.audit.lists import RewardList
    from aligntune.rewards.audit.trial import RewardTrial


@click.command("test", short_help="Test rewards on rows of data: gold up, junk down.")
@click.argument("file", required=False)
@click.option("--reward", metavar="NAME", help="Without FILE: the reward, or file.py:function.")
@click.option("--param", metavar="KEY=VALUE", multiple=True, help="Parameter of --reward; may be given again.")
@click.option("--data", metavar="NAME", help="Hub id, file or folder of rows; in place of the file's data.")
@click.option("--preset", metavar="NAME", help="Known data set's columns and template, for --data.")
@click.option("--split", metavar="NAME", help="Split of --data.")
@click.option("--map", "mapping", metavar="OURS=THEIRS", multiple=True, help="Column of --data: prompt=question.")
@click.option("--gold", metavar="COLUMN", help="Column with the texts that should score highest.")
@click.option("--samples", type=click.IntRange(2), default=50, show_default=True, help="Rows drawn from the data.")
@click.option("--gap", type=click.FloatRange(0, 1), help="Least gap, of the range; 0.2, for kind reference 0.1.")
@click.option(
    "--least", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="What gold must reach, of the range."
)
@click.option("--seed", type=int, help="Seed of the draw.")
@shared
def command(
    settings: Settings,
    file: str | None,
    gold: str | None,
    samples: int,
    gap: float | None,
    least: float,
    seed: int | None,
    **flags: Any,
) -> Output:
    """Test the rewards of FILE (a run's file, or a list with `data:`), or --reward on --data.

    Gold answers must score the maximum; empty, echoed, random, hedged, stuffed, foreign, hidden and injected answers
    must stay below; scores must not depend on batch, order or repetition. Exit code 1 where a check fails.
    """
    from aligntune.algorithms.base import Schema
    from aligntune.data import prepare_dataset
    from aligntune.rewards.audit.lists import columns_of
    from aligntune.rewards.audit.trial import try_reward

    listed = _list(file, seed, **flags)
    rewards = listed.build()
    for source in listed.sources:
        source.max_samples = min(samples, source.max_samples or samples)
    sources: Any = listed.sources if len(listed.sources) > 1 else listed.sources[0]
    prepared = prepare_dataset(sources, Schema.PROMPT, seed=listed.seed)
    rows = [dict(row) for row in prepared.dataset]
    rewards.check_columns([*columns_of(rows), "prompt", "completion"])
    trials = [
        try_reward(c.reward, rows, name=c.name, gold=gold, least=least, gap=gap, seed=listed.seed)
        for c in rewards.components
    ]
    failed = [t.name for t in trials if not t.passed]
    data = {"data": prepared.source, "rows": len(rows), "passed": not failed, "rewards": [t.to_dict() for t in trials]}
    text = "\n\n".join([f"{prepared.source}: {len(rows)} rows", *(_text(t) for t in trials)])
    text += f"\n\nfailed: {', '.join(failed)}" if failed else "\n\nno check failed"
    return Output(data, text, exit_code=int(bool(failed)))


def _list(file: str | None, seed: int | None, **flags: Any) -> RewardList:
    """What the command line says is tested, and on what."""
    from dataclasses import replace

    from aligntune.core.config.reading import parse_yaml
    from aligntune.rewards.audit.lists import of_values, read_reward_list

    if (file is None) == (flags["reward"] is None):
        raise ConfigurationError(
            "give FILE or --reward NAME, one of the two", hint="--reward math_correctness --data F"
        )
    raw: dict[str, Any] = {}
    if flags["data"] is not None:
        raw["data"] = {"name": flags["data"], **{k: flags[k] for k in ("preset", "split") if flags[k] is not None}}
        if flags["mapping"]:
            raw["data"]["column_mapping"] = parameters(flags["mapping"], lambda text, where: text, "--map")
    elif flags["preset"] or flags["split"] or flags["mapping"]:
        raise ConfigurationError(
            "--preset, --split and --map describe --data, which is missing", hint="add --data NAME"
        )
    if file is not None:
        if flags["param"]:
            raise ConfigurationError("--param belongs to --reward", hint="write params: {...} in the file")
        listed = read_reward_list(file)
        if raw:
            listed = replace(listed, sources=of_values({"rewards": ["length"], **raw}).sources)
    else:
        params = parameters(flags["param"], parse_yaml)
        listed = of_values({"rewards": [{"type": flags["reward"], "params": params}], **raw}, "--reward")
    if not listed.sources:
        raise ConfigurationError("nothing says on what data", hint="give --data NAME, or data: {name: ...} in the file")
    return listed if seed is None else replace(listed, seed=seed)


def parameters(given: tuple[str, ...], parse: Any, flag: str = "--param") -> dict[str, Any]:
    """`key=value` strings as a mapping, values as `parse(text, where)` reads them.

    Raises:
        ConfigurationError: one is not `key=value`.
    """
    found = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"{flag} {item} is not KEY=VALUE", hint=f"such as {flag} budget=50")
        found[key] = parse(value, f"{flag} {key}") if value else ""
    return found


def _text(trial: RewardTrial) -> str:
    skipped: dict[str, list[str]] = {}
    for check in trial.checks:
        if check.status == "not applicable":
            skipped.setdefault(check.detail, []).append(check.name)
    about = f"{trial.name} ({trial.kind}, {trial.rows} rows, gold: {trial.gold or 'none'})"
    rows = [[c.name, c.status, c.detail] for c in trial.checks if c.status != "not applicable"]
    lines = [about, table(rows, ["check", "status", "seen"])]
    return "\n".join([*lines, *(f"not applicable: {', '.join(names)}: {why}" for why, names in skipped.items())])
