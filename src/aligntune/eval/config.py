"""The evaluation file: a model, and tasks that join a kind of evaluation with data.

    model: {name_or_path: runs/sft}
    tasks:
      - {name: sums, kind: exact_match, dataset: data/test.jsonl, max_new_tokens: 26}
      - {name: style, kind: reward, dataset: data/test.jsonl, rewards: [answer_format]}
    output_dir: runs/sft-eval

`load_eval_config("eval.yaml", ["tasks.0.max_samples=100"])` reads it: `base:` and overrides work as in a run's file,
and all faults come in one message. A setting that the task's kind does not read is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aligntune.algorithms.base import Head
from aligntune.core.config.base import section
from aligntune.core.config.composing import EVALUATION, CompositionConfig, composition_faults, inert_composition
from aligntune.core.config.io import changed_keys, parse_section
from aligntune.core.config.reading import apply_overrides, as_mapping, read_yaml
from aligntune.core.config.sections import Dataset, JudgeConfig, ModelConfig, OpenFraction, Reward, Seed
from aligntune.errors import ConfigurationError
from aligntune.eval.heads import head_faults
from aligntune.eval.library import expand
from aligntune.eval.lm_eval import LMEvalConfig
from aligntune.eval.registry import EvalRegistry

if TYPE_CHECKING:
    from aligntune.eval.tasks.base import EvalKind

KEYS = "docs/evaluation.md lists the keys"


METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "sentence_bleu", "chrf", "chrf++", "bertscore")
"""Names of `metrics`."""


@section
class FewShot:
    """Solved examples before each question."""

    n: PositiveInt
    """How many."""
    dataset: Dataset
    """Rows with prompt and completion, of another split than the task's."""
    draw: Literal["fixed", "sampled"] = "fixed"
    """fixed: the first n for every question (lm-eval: `first_n`). sampled: drawn for each question."""


@section
class BertScore:
    """An encoder, and which of its layers compares texts."""

    path: str
    """Folder or hub id."""
    layer: NonNegativeInt
    """Whose vectors are compared; 0 is the embedding layer (Zhang et al. 2020 choose one for each model)."""
    baseline: Annotated[float, Ge(-1), Lt(1)] | None = None
    """F1 of unrelated texts, by which the score is rescaled; None leaves it as it is."""


@section
class EvalSettings:
    """How a task is measured."""

    match: Literal["answer", "text"] = "answer"
    """exact_match. answer: the final answer in the text, compared as mathematics (`aligntune.grading`; the practice for
    GSM8K, Cobbe et al. 2021). text: the whole text equals the reference."""
    likelihood_of: Literal["text", "completion", "assistant"] = "text"
    """perplexity. Which tokens count: all of a text, the completion of a prompt, or the assistant's turns."""
    max_new_tokens: PositiveInt = 256
    """Generated answers. Most new tokens per answer (as `evaluation.max_new_tokens` of a run)."""
    temperature: NonNegativeFloat = 0.0
    """Generated answers. 0 decodes greedily, which makes evaluation repeatable."""
    top_p: OpenFraction = 1.0
    """Generated answers. Nucleus sampling; 1.0 is off (TRL)."""
    num_samples: PositiveInt = 1
    """Generated answers. Answers per prompt, averaged; above 1 needs a temperature."""
    stop: list[Annotated[str, MinLen(1)]] = Field(default_factory=list)
    """Generated answers. An answer ends before the first of these strings (the end of sequence ends it anyway)."""
    truncate_prompts: bool = False
    """Generated answers. Cut a prompt that leaves no room in the context at its beginning, in place of stopping."""
    chat_template: bool | None = None
    """Whether the chat template writes the prompts; None: if the model has one. The result says which it was."""
    metrics: list[Literal[METRICS]] = Field(default_factory=lambda: ["rougeL", "bleu", "chrf"])  # type: ignore[valid-type]
    """generation. Which overlaps with the reference; the first is the headline."""
    bertscore: BertScore | None = None
    """generation. The encoder of the metric `bertscore`."""
    choices: str | list[str] = "choices"
    """multiple_choice. Column with the options (a list, or label to text), or one column for each option."""
    answer_with: Literal["text", "label"] = "text"
    """multiple_choice. What is scored behind the question: an option's text (ARC, HellaSwag) or its label (MMLU)."""
    delimiter: str = " "
    """multiple_choice. Between question and option, where no chat template writes the prompt (as in lm-eval)."""
    pass_k: list[PositiveInt] = Field(default_factory=lambda: [1])
    """code, exact_match with several samples. The k of pass@k; at most num_samples (Chen et al. 2021)."""
    timeout: PositiveFloat = 5.0
    """code. Seconds for a program's tests (as the reward `code_execution`)."""
    require: Literal["full", "strong", "weak"] = "strong"
    """code. The least isolation of the sandbox that is accepted."""
    beta: PositiveFloat = 0.1
    """preference. Factor of the implicit reward (Rafailov et al. 2023; DPO's default)."""
    max_length: Annotated[int, Ge(2)] | None = None
    """perplexity, preference, classifiers. Cut rows to this many tokens; None cuts at the model's context."""
    stride: PositiveInt | None = None
    """perplexity. Read a text beyond the limit in windows that begin this many tokens apart (Transformers' guide on
    perplexity uses half the context); None cuts it."""
    labels: Annotated[list[str], MinLen(2)] | None = None
    """Classifiers. Names of the head's outputs in their order, for a model that names none; None takes its own."""
    rubric: str = "pairwise"
    """win_rate. What the judge is told: a shipped rubric or a YAML file, of form `winner`."""
    batch_size: PositiveInt = 8
    """Sequences per forward pass (Transformers)."""


@section
class EvalTask(EvalSettings):
    """One kind of evaluation on one data set."""

    name: str
    """Name in the results: letters, digits, `.`, `_`, `-`."""
    kind: str
    """One of docs/evaluation.md, a registered one, or `file.py:Class` of your own."""
    dataset: Dataset
    """The items."""
    transform: str | None = None
    """`file.py:function` or `package.module:function` that changes each row before it is evaluated: row -> row, or None
    to leave it out."""
    max_samples: PositiveInt | None = None
    """Draw this many items with the seed; None takes all. Short for the data set's own `max_samples`."""
    rewards: list[Reward] = Field(default_factory=list)
    """reward, win_rate, reward_accuracy. What scores the answers."""
    composition: CompositionConfig = Field(default_factory=CompositionConfig)
    """How the rewards become one total."""
    reference_model: str | None = None
    """preference, policy. Model that implicit rewards and KL are measured against (the one before training)."""
    opponent: str | None = None
    """win_rate. Whose answers are met: a model, or the folder of an earlier evaluation; None takes the references."""
    few_shot: FewShot | None = None
    """Solved examples before each question."""


@section
class VLLMConfig:
    """What vLLM needs to know beside the model; the defaults are its own (`vllm.LLM`)."""

    gpu_memory_utilization: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of each GPU's memory that it takes."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share the model."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and answer; None takes the model's context."""


@section
class EvalConfig:
    """A model and the tasks that it is measured on."""

    model: ModelConfig
    """The model; `peft` in it plays no part, an adapter folder is loaded with its base."""
    tasks: list[EvalTask] = Field(default_factory=list)
    """What is measured; names are unique."""
    lm_eval: LMEvalConfig | None = None
    """Tasks of lm-evaluation-harness, on the same model."""
    backend: Literal["trl"] = "trl"
    """Evaluation runs on Transformers, which is what the TRL backend trains; there is no other yet."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What writes the answers. vllm: tasks of generated answers only, on a CUDA GPU (extra `vllm`)."""
    vllm: VLLMConfig = Field(default_factory=VLLMConfig)
    """Settings of the engine vllm."""
    judge: JudgeConfig | None = None
    """The language model that judged rewards ask, unless one names another in its `params`."""
    output_dir: str | None = None
    """Folder for the results and every item; None keeps them in memory."""
    seed: Seed = 42
    """Seed of the draw of items and of sampling (Transformers)."""


def load_eval_config(path: str | Path, overrides: Iterable[str] = ()) -> EvalConfig:
    """An evaluation file as a checked configuration.

    Args:
        path: a YAML file.
        overrides: `key=value` strings, as `tasks.0.batch_size=32`.

    Raises:
        ConfigurationError: with every fault.
    """
    return build_eval_config(read_yaml(path), overrides, str(path))


def build_eval_config(raw: dict[str, Any], overrides: Iterable[str] = (), where: str = "") -> EvalConfig:
    """As `load_eval_config`, from plain values; tasks of the library are filled in before the overrides.

    Args:
        raw: what a file would hold.
        overrides: `key=value` strings.
        where: for messages.

    Raises:
        ConfigurationError: with every fault.
    """
    filled = {**raw, "tasks": expand(raw["tasks"])} if "tasks" in raw else raw
    config = parse_section(EvalConfig, apply_overrides(filled, overrides), where, hint=KEYS)
    check_eval_config(config, where)
    return config


def as_eval_config(config: Any) -> EvalConfig:
    """An evaluation by its object, by the path of its file, or by its plain values.

    Raises:
        ConfigurationError: it is none of these, or wrong.
    """
    if isinstance(config, EvalConfig):
        return config
    if isinstance(config, (str, Path)):
        return load_eval_config(config)
    return build_eval_config(as_mapping(config))


def check_eval_config(config: EvalConfig, where: str = "") -> None:
    """Check what types cannot: names, kinds, and settings that a kind needs or does not read.

    Raises:
        ConfigurationError: with every fault, each with its dotted key.
    """
    faults = [
        (f"tasks.{i}.{key}", sentence) for i, task in enumerate(config.tasks) for key, sentence in _task_faults(task)
    ]
    for name, count in Counter(task.name for task in config.tasks).items():
        if count > 1:
            faults.append(("tasks", f"{count} tasks are named '{name}'"))
    if not config.tasks and config.lm_eval is None:
        faults.append(("tasks", "is empty: name at least one task, here or under lm_eval"))
    faults += _head_faults(config) + _engine_faults(config)
    faults += [(f"judge.{key}", sentence) for key, sentence in (config.judge.faults() if config.judge else [])]
    if not faults:
        return
    lines = [f"{key}: {sentence}" for key, sentence in faults]
    prefix = f"{where}: " if where else ""
    message = lines[0] if len(lines) == 1 else f"{len(lines)} settings are wrong\n  " + "\n  ".join(lines)
    raise ConfigurationError(prefix + message, hint=f"mend the keys named; {KEYS}", context={"faults": faults})


def _task_faults(task: EvalTask) -> list[tuple[str, str]]:
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9._-]+", task.name) or task.name.startswith("."):
        faults.append(("name", f"'{task.name}' names a file: use letters, digits, '.', '_' and '-'"))
    if task.max_samples is not None and task.dataset.max_samples not in (None, task.max_samples):
        faults.append(("max_samples", f"is {task.max_samples}, and dataset.max_samples {task.dataset.max_samples}"))
    try:
        kind = EvalRegistry.get(task.kind)
    except ConfigurationError as e:
        return [*faults, ("kind", f"{e.message}; {e.hint}")]
    common = {"name", "kind", "dataset", "max_samples", "batch_size", "transform"}
    changed = {path.split(".")[0] for path in changed_keys(task)}
    faults += [
        (key, f"has no effect in the kind {task.kind}; remove it") for key in sorted(changed - common - kind.options)
    ]
    if task.rewards:
        faults += _composition_faults(task)
    return [*faults, *kind.faults(task)]


def _head_faults(config: EvalConfig) -> list[tuple[str, str]]:
    """One model serves every task, and a task that asks a judge has one."""
    known = [(i, task, kind) for i, task in enumerate(config.tasks) if (kind := _kind(task)) is not None]
    heads: list[tuple[str, Head | None]] = [(task.name, kind.head) for _, task, kind in known]
    if config.lm_eval is not None:
        heads.append(("lm_eval", "causal_lm"))
    faults = head_faults(heads)
    if config.judge is None:
        faults += [
            (f"tasks.{i}.kind", f"{task.kind} asks a judge, and the file has none: write the section judge, or rewards")
            for i, task, kind in known
            if kind.asks_judge(task)
        ]
    return faults


def _kind(task: EvalTask) -> type[EvalKind] | None:
    """The kind of a task; None for one that is not there, which is told with the task's own faults."""
    try:
        return EvalRegistry.get(task.kind)
    except ConfigurationError:
        return None


def _engine_faults(config: EvalConfig) -> list[tuple[str, str]]:
    """What an engine that only writes answers cannot do, and settings that it does not read."""
    changed = set(changed_keys(config))
    if config.engine == "transformers":
        return [
            (key, "has no effect: engine is transformers; remove it") for key in sorted(changed) if key[:5] == "vllm."
        ]
    faults = [
        (f"tasks.{i}.kind", f"{task.kind} reads log-probabilities, and engine vllm only writes answers; remove engine")
        for i, task in enumerate(config.tasks)
        if (kind := _kind(task)) is not None and not kind.options >= {"max_new_tokens", "temperature"}
    ]
    faults += [
        (f"tasks.{i}.batch_size", "has no effect: vllm fills its batches itself; remove it")
        for i, task in enumerate(config.tasks)
        if "batch_size" in changed_keys(task)
    ]
    if config.lm_eval is not None:
        faults.append(("lm_eval", "needs a model of Transformers; remove engine, or lm_eval"))
    if config.model.quantization is not None:
        faults.append(("model.quantization", "engine vllm loads models whole; remove quantization, or engine"))
    if config.model.attn_implementation is not None:
        faults.append(("model.attn_implementation", "has no effect: vllm has attention kernels of its own; remove it"))
    if config.model.device not in ("auto", "cuda"):
        faults.append(("model.device", f"is {config.model.device}, and engine vllm runs on a CUDA GPU; remove engine"))
    return faults


def _composition_faults(task: EvalTask) -> list[tuple[str, str]]:
    given = {path for path in changed_keys(task) if path.startswith("composition.")}
    inert = inert_composition(task.composition)
    inert |= {f"composition.{key}": "totals are normalised in training alone" for key in EVALUATION}
    found = [(key, f"has no effect: {inert[key]}; remove it") for key in sorted(given & set(inert))]
    return found + list(composition_faults(task.composition, task.rewards))
