"""`aligntune rewards rescore`: the stored rollouts of a run under other rewards."""

from __future__ import annotations

from pathlib import Path

import click

from aligntune.cli.console import Output, Settings, shared
from aligntune.errors import ConfigurationError


@click.command("rescore", short_help="Score a run's rollouts again under other rewards.")
@click.argument("run")
@click.option("--rewards", "file", metavar="FILE", help="YAML with the other rewards: a list, or rewards: [...].")
@click.option("--reward", "names", metavar="NAME", multiple=True, help="Without FILE: a reward; may be given again.")
@click.option("--out", metavar="FILE", help="Parquet with both scores; RUN/rescored/<name>.parquet if left out.")
@shared
def command(settings: Settings, run: str, file: str | None, names: tuple[str, ...], out: str | None) -> Output:
    """Score the rollouts of the run folder RUN under other rewards: rank correlation, advantages that change their
    sign, groups that die or wake, and the rows that change most. The file with both scores stands beside the rollouts.
    """
    from aligntune.rewards.audit.lists import of_values, read_reward_list
    from aligntune.rewards.audit.rescore import rescore, write
    from aligntune.rewards.audit.table import read

    if (file is None) == (not names):
        raise ConfigurationError("give --rewards FILE or --reward NAME, one of the two", hint="--rewards new.yaml")
    listed = read_reward_list(file) if file is not None else of_values({"rewards": list(names)}, "--reward")
    rewards = listed.build()
    rollouts = read(run)
    result = rescore(rollouts, rewards)
    name = Path(file).stem if file is not None else "rescored"
    path = write(Path(out) if out else Path(run) / "rescored" / f"{name}.parquet", rollouts, result)
    data = {"run": run, "file": str(path), **result.to_dict(rollouts)}
    return Output(data, f"{result.text(rollouts)}\n\nboth scores: {path}")
