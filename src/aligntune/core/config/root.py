"""The two run configurations: `SFTConfig` (a file with `task`) and `RLConfig` (a file with `algo`).

    config = RLConfig(
        algo={"name": "grpo", "num_generations": 8},
        model={"name_or_path": "Qwen/Qwen3-0.6B"},
        datasets=[{"name": "openai/gsm8k", "subset": "main", "preset": "gsm8k"}],
        rewards=["math_correctness"],
    )

Construction checks keys and types of one object; `resolve` (in `io`) checks how sections fit together, refuses what
would be without effect, and fills what depends on the algorithm.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from aligntune.algorithms.base import AlgorithmParams, Kind, parse_params
from aligntune.core.config.base import section
from aligntune.core.config.composing import CompositionConfig
from aligntune.core.config.health import HealthConfig
from aligntune.core.config.sections import (
    CacheConfig,
    Dataset,
    EvaluationConfig,
    GenerationConfig,
    JudgeConfig,
    LoggingConfig,
    ModelConfig,
    Reward,
    Text,
    TrainConfig,
)


def _params(kind: Kind) -> Any:
    def build(value: Any) -> Any:
        parsed = parse_params(value, kind)
        return parsed if isinstance(parsed, AlgorithmParams) else parsed[0](**parsed[1])

    return BeforeValidator(build)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


@section
class RunConfig:
    """What both kinds of run have."""

    kind: ClassVar[Kind]

    model: ModelConfig
    """The model and how it is loaded."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Optimisation."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Held-out data and decoding."""
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """What is written while the run goes on."""
    cache: CacheConfig = Field(default_factory=CacheConfig)
    """Where prepared data are kept."""
    health: HealthConfig = Field(default_factory=HealthConfig)
    """What is watched while the run goes on, and what is done at an unhealthy sign."""
    backend: Literal["trl", "unsloth", "auto"] = "trl"
    """The training stack: the only line that changes between backends. auto: Unsloth where a CUDA GPU, the installed
    versions, the algorithm and the settings allow it, else TRL; the run's notes say why."""
    isolation: Literal["auto", "process"] = "auto"
    """auto: train in this process, and refuse where another backend was imported first. process: train in a
    fresh process and bring the results back, because only a process boundary isolates."""
    python: Text | None = None
    """The Python interpreter of the worker process (`isolation: process`), such as that of another virtual environment
    with its own versions; AlignTune must be installed there. null: the interpreter of this process."""
    output_dir: Text = "runs/run"
    """The run's folder; a finished run in it is never overwritten."""

    @property
    def algorithm(self) -> AlgorithmParams:
        """The parameters of the algorithm (`algo`) or task (`task`)."""
        return getattr(self, "algo" if self.kind == "rl" else "task")  # type: ignore[no-any-return]

    @property
    def sources(self) -> list[Any]:
        """The data sets to train on."""
        return getattr(self, "datasets", None) or [self.dataset]  # type: ignore[attr-defined]


@section
class SFTConfig(RunConfig):
    """A supervised run."""

    kind: ClassVar[Kind] = "sft"

    task: Annotated[AlgorithmParams, _params("sft")]
    """The task and its parameters; a plain string stands for `{name: string}`."""
    dataset: Dataset
    """The rows to train on."""


@section
class RLConfig(RunConfig):
    """A preference or policy optimisation run."""

    kind: ClassVar[Kind] = "rl"

    algo: Annotated[AlgorithmParams, _params("rl")]
    """The algorithm and its parameters; a plain string stands for `{name: string}`."""
    datasets: Annotated[list[Dataset], BeforeValidator(_as_list), Field(min_length=1)]
    """The rows to train on; several are mixed by `weight`."""
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    """How completions are sampled in training."""
    rewards: Annotated[list[Reward], BeforeValidator(_as_list)] = Field(default_factory=list)
    """What is rewarded (policy optimisation)."""
    composition: CompositionConfig = Field(default_factory=CompositionConfig)
    """How the rewards become one total."""
    judge: JudgeConfig | None = None
    """The language model that judged rewards ask, unless one names another in its `params`."""
