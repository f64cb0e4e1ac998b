"""The file of `aligntune data pairs`: a model, prompts, how to sample, what ranks, and which pairs are kept.

    model: {name_or_path: runs/sft}
    dataset: {name: prompts.jsonl, preset: gsm8k}
    sampling: {num_samples: 8, temperature: 1.0, max_new_tokens: 200}
    rewards: [math_correctness]            # or ranking: {reward_model: runs/rm}, or judge: {url: ..., model: ...}
    select: {pairs: best_worst, margin: 0.5, max_length_ratio: 2}
    output: pairs.jsonl

>>> load_pairs_config("pairs.yaml", ["select.margin=0.2"]).select.margin
0.2

`base:` and overrides work as in a run's file. All faults come in one message, settings without effect among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen
from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aligntune.core.config.base import section
from aligntune.core.config.composing import EVALUATION, CompositionConfig, composition_faults, inert_composition
from aligntune.core.config.io import changed_keys, parse_section
from aligntune.core.config.reading import apply_overrides, read_yaml
from aligntune.core.config.sections import (
    Dataset,
    Fraction,
    JudgeConfig,
    ModelConfig,
    OpenFraction,
    Reward,
    Seed,
    Text,
)
from aligntune.errors import ConfigurationError
from aligntune.rewards.judges.rubric import MAX_CHARS

KEYS = "docs/data.md lists the keys"
SUFFIXES = (".jsonl", ".parquet")
WAYS = (
    "give rewards: [math_correctness] (any rewards), ranking.reward_model: PATH (a reward model), or "
    "judge: {url: ..., model: ...} (a judge)"
)
"""The three ways to rank."""
JUDGES = (
    "give judge: {url: ..., model: ...} (an endpoint) or judge: {kind: local, model: ...} (in this process), or rank "
    "without one: rewards: [...] or ranking.reward_model: PATH"
)
By = Literal["rewards", "reward_model", "rubric", "pairwise"]
Fault = tuple[str, str]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


@section
class SamplingConfig:
    """How answers are sampled."""

    num_samples: PositiveInt = 5
    """Answers to each prompt, at least 2 (Meng et al. 2024, arXiv:2405.14734, section 3: 5)."""
    temperature: NonNegativeFloat = 0.8
    """Above 0: higher gives answers that differ more (Meng et al. 2024, arXiv:2405.14734, section 3: 0.8)."""
    top_p: OpenFraction = 1.0
    """Nucleus sampling; 1.0 is off (as `generation.top_p` of a run)."""
    top_k: NonNegativeInt = 0
    """Sample among the k most likely tokens; 0 is off (as `generation.top_k`)."""
    min_p: Fraction | None = None
    """Drop tokens below this share of the most likely one; None is off (as `generation.min_p`)."""
    repetition_penalty: PositiveFloat = 1.0
    """Penalty on tokens seen before; 1.0 is off (as `generation.repetition_penalty`)."""
    max_new_tokens: PositiveInt = 256
    """Most new tokens per answer (as `generation.max_completion_length`). Prompts that leave less room in the model's
    context are left out and counted."""
    stop: list[Annotated[str, MinLen(1)]] = Field(default_factory=list)
    """An answer ends before the first of these strings (the end of sequence ends it anyway)."""
    batch_size: PositiveInt = 8
    """Sequences per batch (Transformers). Sampled answers depend on it, as on the seed."""
    keep_truncated: bool = False
    """Let answers take part that were cut at `max_new_tokens`; a cut one that is chosen teaches not to end (ours)."""


@section
class RankingConfig:
    """What ranks the answers to a prompt."""

    by: By | None = None
    """rewards: the total of `rewards`. reward_model: the logit of `reward_model`. rubric: a judge's score of each
    answer. pairwise: a judge compares every two answers in both orders. None: what is given; with a judge alone,
    pairwise, or what the rubric is made for."""
    reward_model: Text | None = None
    """Folder or hub id of a reward model; to set its batch size or length, or to combine it with others, write
    `rewards: [{type: reward_model, params: {path: ...}}]`."""
    rubric: Text | None = None
    """What a judge is asked by: a shipped rubric or a YAML file; None takes `helpfulness` (rubric) or `pairwise`."""
    max_chars: PositiveInt = MAX_CHARS
    """Most characters of a text that a judge is shown (as of judged rewards)."""


@section
class SelectConfig:
    """Which pairs are kept."""

    pairs: Literal["best_worst", "best_random", "all"] = "best_worst"
    """best_worst: the two answers furthest apart (Meng et al. 2024, arXiv:2405.14734, section 3; Yuan et al. 2024,
    arXiv:2401.10020, section 2.3). best_random: the best answer and another one at random (Tunstall et al. 2023,
    arXiv:2310.16944, section 3.2). all: every two answers (Ouyang et al. 2022, arXiv:2203.02155, section 3.5)."""
    margin: NonNegativeFloat = 0.0
    """Keep pairs whose scores differ by at least this. Equal scores are never a pair (ours: any difference)."""
    per_prompt: PositiveInt | None = None
    """Most pairs of a prompt; None is 1, and with `all` no limit. best_worst: then the two furthest apart of the
    remaining answers, and so on. best_random: the best answer with several others. all: drawn with the seed."""
    max_length_ratio: Annotated[float, Ge(1)] | None = None
    """Keep pairs whose longer answer has at most so many times the tokens of the shorter one, against a preference for
    length (Singhal et al. 2023, arXiv:2310.03716); None keeps all."""


@section
class PairsConfig:
    """Preference pairs from a model."""

    model: ModelConfig
    """The model that answers; `peft` in it plays no part, an adapter folder is loaded with its base."""
    dataset: Dataset
    """The prompts, with the columns that the rewards read."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How answers are sampled."""
    rewards: Annotated[list[Reward], BeforeValidator(_as_list)] = Field(default_factory=list)
    """The rewards that rank, `reward_model` and `judge_rubric` among them."""
    composition: CompositionConfig = Field(default_factory=CompositionConfig)
    """How the rewards become one total."""
    judge: JudgeConfig | None = None
    """The language model that compares or scores answers, or that judged rewards ask."""
    ranking: RankingConfig = Field(default_factory=RankingConfig)
    """What ranks, where it is not `rewards`."""
    select: SelectConfig = Field(default_factory=SelectConfig)
    """Which pairs are kept."""
    output: Text
    """The file to write: `.jsonl` or `.parquet`. An existing one is never overwritten."""
    seed: Seed = 42
    """Seed of the draw of prompts, of sampling, and of draws among pairs (Transformers)."""


def load_pairs_config(path: str | Path, overrides: Iterable[str] = ()) -> PairsConfig:
    """A checked configuration from a YAML file.

    Args:
        path: of the file.
        overrides: `key=value` strings.

    Raises:
        ConfigurationError: with every fault.
    """
    return build_pairs_config(read_yaml(path), overrides, str(path))


def build_pairs_config(
    raw: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "", *, judge: bool = False
) -> PairsConfig:
    """As `load_pairs_config`, from plain values.

    Args:
        raw: what a file would hold.
        overrides: `key=value` strings.
        where: for messages.
        judge: a judge in memory will be given to `PairMaker`.

    Raises:
        ConfigurationError: with every fault.
    """
    config = parse_section(PairsConfig, apply_overrides(raw, overrides), where, hint=KEYS)
    check_pairs_config(config, where, judge=judge)
    return config


def ranked_by(config: PairsConfig, *, judge: bool = False) -> By | None:
    """What ranks: `ranking.by`, or what is given; None where nothing is."""
    if config.ranking.by is not None:
        return config.ranking.by
    if config.rewards:
        return "rewards"
    if config.ranking.reward_model is not None:
        return "reward_model"
    if config.judge is None and not judge:
        return None
    if config.ranking.rubric is not None:
        from aligntune.rewards.judges import load_rubric

        return "rubric" if load_rubric(config.ranking.rubric).form == "score" else "pairwise"
    return "pairwise"


def check_pairs_config(config: PairsConfig, where: str = "", *, judge: bool = False) -> None:
    """Check what types cannot.

    Args:
        config: what a file said.
        where: for the message.
        judge: a judge in memory stands in for the section.

    Raises:
        ConfigurationError: with every fault, each with its dotted key.
    """
    faults = [*_sampling_faults(config), *_ranking_faults(config, judge)]
    faults += [(f"judge.{key}", sentence) for key, sentence in (config.judge.faults() if config.judge else [])]
    if not faults:
        return
    lines = [f"{key}: {sentence}" for key, sentence in faults]
    prefix = f"{where}: " if where else ""
    if len(faults) == 1:
        said, _, fix = lines[0].partition("; ")
        raise ConfigurationError(f"{prefix}{said}", hint=fix or KEYS, context={"faults": faults})
    message = f"{len(faults)} settings are wrong\n  " + "\n  ".join(lines)
    raise ConfigurationError(prefix + message, hint=f"mend the keys named; {KEYS}", context={"faults": faults})


def _sampling_faults(config: PairsConfig) -> Iterable[Fault]:
    k = config.sampling.num_samples
    if k < 2:
        yield "sampling.num_samples", f"is {k}, and a pair takes two answers; set it to 2 or more (5 is usual)"
    if config.sampling.temperature == 0:
        yield "sampling.temperature", "is 0, which gives equal answers; set it above 0 (0.8 to 1 is usual)"
    if Path(config.output).suffix not in SUFFIXES:
        yield "output", f"'{config.output}' has no known ending; end it in {' or '.join(SUFFIXES)}"
    if config.dataset.streaming:
        yield "dataset.streaming", "has no effect: the prompts are counted and checked first; remove it"


def _ranking_faults(config: PairsConfig, judge: bool) -> Iterable[Fault]:
    by, asked = ranked_by(config, judge=judge), config.judge is not None or judge
    if by is None:
        yield "rewards", f"nothing says what ranks the answers; {WAYS}"
        return
    if by == "rewards" and not config.rewards:
        yield "rewards", "is empty, and ranking.by says rewards; name at least one"
    if by == "reward_model" and config.ranking.reward_model is None:
        yield "ranking.reward_model", "is missing, and ranking.by says reward_model; give its folder or hub id"
    if by in ("rubric", "pairwise") and not asked:
        yield "judge", f"is missing, and ranking by {by} asks one; {JUDGES}"
    yield from _inert(config, by)
    if config.rewards and by == "rewards":
        yield from _composition_faults(config)
    if by in ("rubric", "pairwise"):
        yield from _rubric_faults(config, by)


def _inert(config: PairsConfig, by: By) -> Iterable[Fault]:
    changed = changed_keys(config)
    if config.rewards and by != "rewards":
        yield "rewards", f"has no effect: the answers are ranked by {by}; remove it, or set ranking.by: rewards"
    if config.ranking.reward_model is not None and by != "reward_model":
        join = "; to combine it write rewards: [{type: reward_model, params: {path: ...}}, ...]"
        yield "ranking.reward_model", f"has no effect: the answers are ranked by {by}{join}"
    if config.judge is not None and by == "reward_model":
        yield "judge", "has no effect: the answers are ranked by reward_model; remove it"
    for key in sorted(changed):
        if key.startswith("composition.") and by != "rewards":
            yield key, f"has no effect: the answers are ranked by {by}; remove it"
        if key in ("ranking.rubric", "ranking.max_chars") and by in ("rewards", "reward_model"):
            yield key, f"has no effect: the answers are ranked by {by}; remove it"


def _rubric_faults(config: PairsConfig, by: By) -> Iterable[Fault]:
    from aligntune.rewards.judges import load_rubric

    if config.ranking.rubric is not None:
        form = load_rubric(config.ranking.rubric).form
        if (form == "winner") != (by == "pairwise"):
            other = "pairwise" if form == "winner" else "rubric"
            yield "ranking.rubric", f"has form: {form}, and ranking.by is {by}; set ranking.by: {other}"
    if config.select.margin > 1:
        yield "select.margin", f"is {config.select.margin:g}, and a judge's scores lie in [0, 1]; set it to at most 1"


def _composition_faults(config: PairsConfig) -> Iterable[Fault]:
    given = {path for path in changed_keys(config) if path.startswith("composition.")}
    inert = inert_composition(config.composition)
    inert |= {f"composition.{key}": "totals are normalised in training alone" for key in EVALUATION}
    yield from [(key, f"has no effect: {inert[key]}; remove it") for key in sorted(given & set(inert))]
    yield from composition_faults(config.composition, config.rewards)
