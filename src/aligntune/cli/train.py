"""`aligntune train`: a run from a file, from flags, or from a file with changes.

    aligntune train run.yaml train.max_steps=20
    aligntune train --algorithm dpo --model Qwen/Qwen3-0.6B --dataset pairs.jsonl --output-dir runs/dpo

Precedence: defaults, the file's `base:`, the file, flags, `key=value`. A relative path means the working folder,
except `base:`, which is relative to its file.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.core.config import RLConfig, SFTConfig

FLAGS = {
    "model": "model_name",
    "dataset": "dataset_name",
    "preset": "preset",
    "split": "split",
    "algorithm": "algorithm",
    "task": "task_type",
    "backend": "backend",
    "output_dir": "output_dir",
    "max_steps": "max_steps",
    "num_epochs": "num_epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "reward": "rewards",
}
"""Flag to the factories' keyword argument, which one table (`core.config.aliases`) maps to its dotted key."""


SHOWN = ("algorithm", "backend", "backend_available", "trainer", "library_class", "data_schema", "batch", "arguments")
"""Entries of the factory's description that --dry-run prints beneath the configuration."""


class _Train(click.Command):
    """A command whose --resume may stand without a value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _complete_resume(args))


def _complete_resume(args: list[str]) -> list[str]:
    """Write a bare `--resume` as `--resume=latest`, so that it does not swallow the file or an override."""
    done = list(args)
    for i, arg in enumerate(args):
        following = args[i + 1] if i + 1 < len(args) else "-"
        is_value = not (
            following.startswith("-")
            or following.endswith((".yaml", ".yml"))
            or os.path.isfile(following)
            or ("=" in following and not os.path.isdir(following))
        )
        if arg == "--resume" and not is_value:
            done[i] = "--resume=latest"
    return done


@click.command(cls=_Train, short_help="Train from a YAML file or from flags.")
@click.argument("arguments", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Folder or hub id of the model to start from.")
@click.option("--dataset", metavar="NAME", help="Hub id, file or folder of rows to train on.")
@click.option("--preset", metavar="NAME", help="Known data set's columns and template, such as gsm8k.")
@click.option("--split", metavar="NAME", help="Split of the data set, or a slice such as train[:10%].")
@click.option("--algorithm", metavar="NAME", help="Preference or policy optimisation, such as dpo, grpo.")
@click.option("--type", "task", metavar="TASK", help="Supervised task, such as instruction_following.")
@click.option("--reward", metavar="NAME", multiple=True, help="Reward, or file.py:function; may be given again.")
@click.option("--backend", metavar="NAME", help="trl, unsloth or auto.")
@click.option("--output-dir", metavar="DIR", help="The run's folder.")
@click.option("--max-steps", type=int, help="Optimizer steps.")
@click.option("--num-epochs", type=float, help="Passes over the data, without --max-steps.")
@click.option("--batch-size", type=int, help="Sequences per device and forward pass.")
@click.option("--learning-rate", type=float, help="Peak learning rate.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--dry-run", is_flag=True, help="Check and print what would be trained; write nothing.")
@click.option("--resume", metavar="[latest|PATH]", help="Go on from the newest checkpoint, or from this one.")
@click.option("--plain", is_flag=True, help="Lines in place of the live view (logging.display=plain).")
@click.option("--no-check", is_flag=True, help="Leave out the quick checks before training (see `aligntune check`).")
@click.option("--smoke", is_flag=True, help="Only a few steps on the longest rows, in a folder that is removed.")
@click.option("--keep", is_flag=True, help="Keep the folder of --smoke.")
@shared
def command(
    settings: Settings,
    arguments: tuple[str, ...],
    dry_run: bool,
    resume: str | None,
    plain: bool,
    no_check: bool,
    smoke: bool,
    keep: bool,
    **flags: Any,
) -> Output:
    """Train from FILE, changed by flags and KEY=VALUE, or from flags alone.

    KEY is the dotted path of a setting: train.learning_rate=1e-5, model.peft.r=32, rewards.0.weight=0.5. `aligntune
    config schema` lists every key. Relative paths are relative to the working folder.
    """
    file, overrides = split_arguments(arguments)
    given = {FLAGS[k]: list(v) if k == "reward" else v for k, v in flags.items() if v not in (None, ())}
    config = build(file, [*overrides, *(["logging.display=plain"] if plain else [])], given)
    if dry_run or smoke:
        alone = "--dry-run" if dry_run else "--smoke"
        for name, given_too in (("--resume", resume), ("--no-check", no_check), ("--smoke", dry_run and smoke)):
            if given_too:
                raise ConfigurationError(f"{name} has no effect with {alone}", hint="leave one of the two out")
    if keep and not smoke:
        raise ConfigurationError("--keep is for --smoke", hint="add --smoke, or remove --keep")
    if dry_run:
        return _describe(config)
    if smoke:
        return _smoke(config, keep)
    return _train(config, resume, check=not no_check)


def build(file: str | None, overrides: list[str], keywords: dict[str, Any]) -> RLConfig | SFTConfig:
    """The resolved configuration of a command line.

    Raises:
        ConfigurationError: with every fault in one message.
    """
    from aligntune.core.config import load_config, read_yaml
    from aligntune.core.config.aliases import keywords_to_keys
    from aligntune.core.config.io import notices

    raw = read_yaml(file) if file else {}
    given = dict(item.partition("=")[::2] for item in overrides)
    named = given.get("algo.name") or given.get("algo") or keywords.get("algorithm")
    for notice in notices({"algo": named} if named else raw):
        click.echo(f"note: {notice}", err=True)
    kind = _kind(raw, overrides, keywords, file)
    source: Any = file or ({"dataset": {}} if kind == "sft" else {"datasets": [{}]})
    return load_config(source, overrides=overrides, keywords=keywords_to_keys(kind, keywords))


def _kind(raw: dict[str, Any], overrides: list[str], keywords: dict[str, Any], file: str | None) -> Any:
    """Supervised ("sft") or reinforcement ("rl") run, by what the file, the flags and the overrides name."""
    roots = [item.partition("=")[0].partition(".")[0] for item in overrides]
    sft = "task" in raw or "task_type" in keywords or "task" in roots
    rl = "algo" in raw or "algorithm" in keywords or "algo" in roots
    if sft and rl:
        where = f"{file} has" if file else "the command line has"
        raise ConfigurationError(
            f"{where} a task (supervised) and an algorithm (preference or policy) at once",
            hint="`algo:` and --algorithm belong to one kind of run, `task:` and --type to the other; keep one",
        )
    if not file and not (sft or rl):
        raise ConfigurationError(
            "nothing says what to train",
            hint="give a YAML file (see `aligntune recipes list`), or --model, --dataset and --algorithm or --type",
        )
    return "sft" if sft else "rl"


def _describe(config: RLConfig | SFTConfig) -> Output:
    from aligntune.core.backend import BACKENDS, get_backend
    from aligntune.core.backend_choice import settle_backend
    from aligntune.core.backend_factory import describe
    from aligntune.core.checks import check_packages
    from aligntune.core.config import dump_config
    from aligntune.data.presets import get_preset
    from aligntune.utils.run_folder import RunFolder

    check_packages(config)
    RunFolder.check(config.output_dir)
    config, why = settle_backend(config)
    if BACKENDS[config.backend].available:
        get_backend(config.backend).check(config)
    for source in (*config.sources, config.evaluation.dataset):
        if source is not None and source.preset is not None:
            get_preset(source.preset)
    if config.algorithm.uses_rewards:
        from aligntune.rewards import build_rewards

        given: Any = config
        build_rewards(given.rewards, composition=given.composition, judge=given.judge).check_judge(given.judge)
    described = describe(config)
    if why:
        described["notes"] = [why]
    lines = [f"#   {line}" for key in SHOWN for line in _lines(key, described[key])]
    lines += [f"#   note: {why}"] if why else []
    text = dump_config(config) + "\n# nothing was written; what would be trained:\n" + "\n".join(lines)
    return Output(described, text)


def _lines(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}:", *(f"  {k}: {v}" for k, v in value.items())]
    return [f"{key}: {value}"]


def _smoke(config: RLConfig | SFTConfig, keep: bool) -> Output:
    from aligntune.cli.check import as_text
    from aligntune.preflight import Report, smoke

    found, folder = smoke(config, keep=keep)
    report = Report(found)
    text = as_text(report) + (f"\nkept in {folder}" if folder else "")
    return Output({**report.to_dict(), "smoke_folder": folder}, text, exit_code=report.exit_code())


def _train(config: RLConfig | SFTConfig, resume: str | None, *, check: bool) -> Output:
    from aligntune.core.backend_factory import create_trainer
    from aligntune.preflight import quick

    trainer = create_trainer(config)
    try:
        if check:
            quick(trainer, trainer.config, resuming=resume is not None)
        result = trainer.train(resume=resume)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(trainer.resume_hint) from stop
    told = logging.getLogger("aligntune").isEnabledFor(logging.INFO)  # the notes were shown as they came
    report = os.path.join(config.output_dir, "report.html")
    lines = [
        *(f"- {note}" for note in trainer.notes if not told),
        f"trained {result.total_steps} steps in {result.training_time:.1f} s, mean loss {result.final_loss:.4f}, "
        f"peak memory {result.peak_memory / 1e9:.2f} GB",
        *result.evaluated(),
        f"model   {result.model_path}",
        *([f"report  {report}"] if os.path.exists(os.path.expanduser(report)) else []),
    ]
    return Output({**result.to_dict(), "output_dir": config.output_dir, "notes": trainer.notes}, "\n".join(lines))
