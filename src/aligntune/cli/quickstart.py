"""`aligntune quickstart`: the whole story on this machine, without network, GPU or account."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Train and evaluate a small real model here, in minutes.")
@click.option("--out", default="runs/quickstart", show_default=True, metavar="DIR", help="Where the runs go.")
@click.option("--fast", is_flag=True, help="The same stages in about a minute, with less to show.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every stage.")
@shared
def command(settings: Settings, out: str, fast: bool, seed: int) -> Output:
    """Train a small real model on this machine: evaluate, SFT, GRPO, DPO, and evaluate every stage again.

    Needs no network, no GPU and no account. Each stage is an ordinary recipe that you can open and run alone.
    """
    from aligntune.quickstart.story import run_quickstart

    return Output(*run_quickstart(out, fast=fast, seed=seed))
