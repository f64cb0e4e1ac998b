"""`aligntune rewards train`: a reward model from preference pairs, or from reward functions.

aligntune rewards train reward_model.yaml train.max_steps=200
"""

from __future__ import annotations

import logging
from typing import Any

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments
from aligntune.cli.train import _Train
from aligntune.errors import ConfigurationError


@click.command(cls=_Train, short_help="Train a reward model.")
@click.argument("arguments", nargs=-1, metavar="FILE [KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Check and print what would be trained; write nothing.")
@click.option("--resume", metavar="[latest|PATH]", help="Go on from the newest checkpoint, or from this one.")
@shared
def command(settings: Settings, arguments: tuple[str, ...], dry_run: bool, resume: str | None) -> Output:
    """Train the reward model that FILE describes, changed by KEY=VALUE.

    FILE has `objective: bradley_terry` or `distillation`, `model`, `datasets`, and `rewards` where reward functions
    label the answers. Relative paths are relative to the working folder.
    """
    from aligntune.rewards.training.config import load_reward_config

    file, overrides = split_arguments(arguments)
    if file is None:
        raise ConfigurationError(
            "nothing says what to train", hint="give a YAML file with `objective`, as docs/reward-models.md shows"
        )
    config = load_reward_config(file, overrides=overrides)
    if not dry_run:
        return _train(config, resume)
    if resume:
        raise ConfigurationError("--resume has no effect with --dry-run", hint="leave one of the two out")
    return _describe(config)


def _describe(config: Any) -> Output:
    from aligntune.core.arguments import trainer_arguments
    from aligntune.core.checks import check_packages
    from aligntune.core.config import dump_config, effective
    from aligntune.data.presets import get_preset
    from aligntune.utils.run_folder import RunFolder

    check_packages(config)
    RunFolder.check(config.output_dir)
    for source in (*config.sources, config.evaluation.dataset):
        if source is not None and source.preset is not None:
            get_preset(source.preset)
    if config.rewards:
        from aligntune.rewards import build_rewards

        build_rewards(config.rewards)
    values = trainer_arguments(config, device="cpu", precision="fp32", output_dir=config.output_dir)
    params = config.objective
    described = {"config": effective(config), "library_class": params.trainer, "arguments": values}
    lines = [f"#   library_class: {params.trainer}", "#   arguments:", *(f"#     {k}: {v}" for k, v in values.items())]
    text = dump_config(config) + "\n# nothing was written; what would be trained:\n" + "\n".join(lines)
    return Output(described, text)


def _train(config: Any, resume: str | None) -> Output:
    from aligntune.rewards.training import RewardModelTrainer

    trainer = RewardModelTrainer(config)
    try:
        result = trainer.train(resume=resume)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(trainer.resume_hint) from stop
    told = logging.getLogger("aligntune").isEnabledFor(logging.INFO)
    lines = [
        *(f"- {note}" for note in trainer.notes if not told),
        f"trained {result.total_steps} steps in {result.training_time:.1f} s, mean loss {result.final_loss:.4f}",
        *result.evaluated(),
        f"reward model {result.model_path}",
        f"next: aligntune rewards validate {result.model_path} --data HELD_OUT",
    ]
    return Output({**result.to_dict(), "output_dir": config.output_dir, "notes": trainer.notes}, "\n".join(lines))
