"""`aligntune quickstart`: the whole story on this machine, without network, GPU or account."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Train and evaluate a small real model here, in minutes.")
@click.option("--out", metavar="DIR", help="Where the runs go.  [default: runs/quickstart, then runs/quickstart-2 ...]")
@click.option("--fast", is_flag=True, help="The same stages in about a minute, with less to show.")
@click.option(
    "--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True, help="Seed of every stage."
)
@shared
def command(settings: Settings, out: str | None, fast: bool, seed: int) -> Output:
    """Train a small real model on this machine: evaluate, SFT, GRPO, DPO, and evaluate every stage again.

    Needs no network, no GPU and no account. Each stage is an ordinary recipe that you can open and run alone.
    """
    from aligntune.quickstart.story import run_quickstart

    return Output(*run_quickstart(out or _free_folder(), fast=fast, seed=seed))


def _free_folder() -> str:
    """The first of runs/quickstart, runs/quickstart-2, ... that is not there: a finished run is never overwritten."""
    names = (f"runs/quickstart-{i}" if i > 1 else "runs/quickstart" for i in count(1))
    return next(name for name in names if not Path(name).exists())
