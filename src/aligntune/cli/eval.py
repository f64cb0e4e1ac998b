"""`aligntune eval`: measure models on tasks (`eval_run`, which needs no name), list the tasks, compare results.

aligntune eval eval.yaml                  # the same as: aligntune eval run eval.yaml
aligntune eval compare runs/a-eval runs/b-eval
"""

from __future__ import annotations

import click

from aligntune.cli.console import Family

DEFAULT = "run"


class Evaluate(Family):
    """A group whose command `run` may go without its name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.list_commands(ctx) and args[0] not in ("-h", "--help")):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group("eval", cls=Evaluate, short_help="Measure models on tasks, with intervals, and compare them.")
def command() -> None:
    """Measure models on tasks, and compare the results. `aligntune eval ...` stands for `aligntune eval run ...`."""
