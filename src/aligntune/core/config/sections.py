"""The sections that SFT and RL runs share: model, data, training, generation, evaluation, logging, rewards, cache.

Each default is stated here once and names its source. "TRL" means the value of the tested TRL release, "Transformers"
that of its `TrainingArguments`; both are passed on explicitly, because backends change their own defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aligntune.core.config.base import section

Text = Annotated[str, MinLen(1)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
"""What NumPy's generator takes."""
Fraction = Annotated[float, Ge(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Le(1)]


def _as_dataset(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_reward(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


@section
class PeftConfig:
    """LoRA adapters through PEFT (Hu et al. 2021, arXiv:2106.09685)."""

    r: PositiveInt = 16
    """Rank of the update (Unsloth's default; PEFT's is 8)."""
    alpha: PositiveFloat = 32
    """Scale: the update is multiplied by alpha / r (TRL's `lora_alpha`)."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input (PEFT)."""
    target_modules: list[str] | str = "all-linear"
    """Module names, a regular expression, or `all-linear` (QLoRA, Dettmers et al. 2023, section 4)."""
    modules_to_save: list[str] | None = None
    """Modules trained in full and saved beside the adapter, such as `lm_head` (PEFT)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732; PEFT)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353; PEFT)."""


@section
class ModelConfig:
    """Which model, and how it is loaded."""

    name_or_path: Text
    """A folder or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository; None is the main branch (Transformers)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Training precision. auto: bf16 where the GPU supports it, fp16 on older GPUs, fp32 on the CPU."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, then MPS, then the CPU."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load frozen weights in 4 bit (NF4, double quantisation; arXiv:2305.14314) or 8 bit. Needs `peft`."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """Attention kernel; None lets Transformers choose."""
    max_seq_length: PositiveInt = 1024
    """Longest sequence in tokens, prompt and completion together (TRL's `max_length`)."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Only for code that you have read (Transformers)."""
    chat_template: str | None = None
    """A Jinja template or the path of one, in place of the tokenizer's own."""
    peft: PeftConfig | None = None
    """Train LoRA adapters instead of all weights."""


@section
class DatasetConfig:
    """One source of rows. A plain string stands for `{name: string}`."""

    name: Text
    """A hub id, a json, jsonl, csv or parquet file, or a folder; `name#500` draws 500 rows."""
    subset: str | None = None
    """The hub data set's configuration (`main` for gsm8k)."""
    split: str = "train"
    """The split, or a slice of it: `train[:10%]`. Files and folders have the split `train` unless named."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    preset: str | None = None
    """A known data set's column mapping and template: alpaca, gsm8k, hh_rlhf."""
    format: (
        Literal[
            "alpaca",
            "prompt_completion",
            "messages",
            "sharegpt",
            "text",
            "preference",
            "unpaired",
            "unpaired_messages",
            "classification",
            "tokens",
            "prompt",
        ]
        | None
    ) = None
    """What the rows are; None detects it from the columns, and says what it found."""
    column_mapping: dict[str, str] | None = None
    """Our column name: the source's column name, as `{prompt: question}`."""
    prompt_template: str | None = None
    """A Jinja template over the row's columns that makes the prompt."""
    system_prompt: str | None = None
    """A system message put before each conversation."""
    max_samples: PositiveInt | None = None
    """Keep this many rows, drawn with the run's seed; None keeps all."""
    weight: PositiveFloat = 1.0
    """Share of this source among several. Equal weights join all sources whole; else each is drawn, without
    repetition, in proportion to its weight."""


Dataset = Annotated[DatasetConfig, BeforeValidator(_as_dataset)]


@section
class TrainConfig:
    """Optimisation. Nothing here belongs to one algorithm only."""

    learning_rate: PositiveFloat | None = None
    """Peak learning rate; None takes the algorithm's own, which the resolved config shows."""
    num_epochs: PositiveFloat = 3.0
    """Passes over the data when `max_steps` is not set (Transformers)."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; overrides `num_epochs`."""
    per_device_batch_size: PositiveInt = 8
    """Sequences per device and forward pass (Transformers)."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes per optimizer step (Transformers)."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up (Transformers); excludes `warmup_ratio`."""
    warmup_ratio: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Warm-up as a share of all steps; excludes `warmup_steps`."""
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = "linear"
    """Learning-rate schedule after the warm-up (Transformers)."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "sgd", "adafactor"] = (
        "adamw_torch_fused"
    )
    """Optimizer (Transformers)."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (Transformers)."""
    adam_beta1: Annotated[float, Ge(0), Le(1)] = 0.9
    """First-moment decay (Kingma and Ba 2015)."""
    adam_beta2: Annotated[float, Ge(0), Le(1)] = 0.999
    """Second-moment decay (Kingma and Ba 2015)."""
    adam_epsilon: PositiveFloat = 1e-8
    """Denominator term (Kingma and Ba 2015)."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the global gradient norm here (Transformers)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 30% more time (off in Transformers, on in TRL)."""
    seed: Seed = 42
    """Seed of everything random: data order, sampling, adapters, generation (Transformers)."""
    save_steps: PositiveInt | None = None
    """Write a checkpoint every so many optimizer steps; None writes none before the end."""
    save_total_limit: PositiveInt | None = None
    """Keep this many checkpoints, the newest; None keeps all (Transformers)."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better value, and keep the best one's weights (Prechelt
    1998); None trains to the end. Needs `evaluation.every`."""
    dataloader_workers: NonNegativeInt = 0
    """Processes that load data (Transformers)."""


@section
class GenerationConfig:
    """How completions are sampled in policy optimisation."""

    max_prompt_length: PositiveInt = 512
    """Prompts with more tokens are left out, and counted (512 was TRL's, while it had the limit)."""
    max_completion_length: PositiveInt = 256
    """Most new tokens per completion (256 was TRL's until 0.25; TRL 1.x: 512)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; 1.0 keeps the policy's own distribution, which the losses assume (TRL)."""
    top_p: OpenFraction = 1.0
    """Nucleus sampling; 1.0 is off (TRL)."""
    top_k: NonNegativeInt = 0
    """Sample among the k most likely tokens; 0 is off (TRL)."""
    min_p: Fraction | None = None
    """Drop tokens below this share of the most likely one; None is off (TRL)."""
    repetition_penalty: PositiveFloat = 1.0
    """Penalty on tokens seen before; 1.0 is off (TRL)."""
    use_vllm: bool = False
    """Sample with vLLM in place of Transformers; needs the package (off in TRL)."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """In the training process, or on a server started with `trl vllm-serve` (TRL)."""
    vllm_gpu_memory_utilization: OpenFraction = 0.3
    """colocate: share of the GPU's memory for vLLM (TRL)."""
    vllm_tensor_parallel_size: PositiveInt = 1
    """colocate: GPUs that one copy of the model is spread over (TRL)."""
    vllm_max_model_length: PositiveInt | None = None
    """colocate: vLLM's context in tokens; None takes the model's (TRL)."""
    vllm_enable_sleep_mode: bool = False
    """colocate: free vLLM's memory during the update (off in TRL)."""
    vllm_server_base_url: Text | None = None
    """server: its address, in place of host and port (TRL)."""
    vllm_server_host: Text = "0.0.0.0"  # noqa: S104 - where to connect to, not where to listen
    """server: its host (TRL)."""
    vllm_server_port: Annotated[int, Ge(1), Lt(65536)] = 8000
    """server: its port (TRL)."""
    vllm_server_timeout: PositiveFloat = 240.0
    """server: most seconds to wait for it at the start (TRL)."""
    vllm_group_port: Annotated[int, Ge(1), Lt(65536)] = 51216
    """server: port over which weights are sent (TRL)."""
    vllm_importance_sampling_correction: bool = True
    """Correct for the difference between vLLM's and the model's probabilities (on in TRL)."""
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    """How the correcting ratio is limited: cut off or left out, by token or by completion (TRL)."""
    vllm_importance_sampling_clip_max: PositiveFloat | None = 3.0
    """Upper limit of the correcting ratio (TRL)."""
    vllm_importance_sampling_clip_min: PositiveFloat | None = None
    """Lower limit of the correcting ratio; None is none (TRL)."""


@section
class EvaluationConfig:
    """Held-out data for a training run, and how `evaluate()` and `generate()` decode."""

    dataset: Dataset | None = None
    """Held-out rows; None means that `evaluate()` needs a data set as its argument."""
    every: PositiveInt | None = None
    """Evaluate every so many steps; None evaluates when asked. Needs `dataset`."""
    batch_size: PositiveInt = 8
    """Sequences per forward pass in evaluation (Transformers)."""
    max_new_tokens: PositiveInt = 256
    """Most new tokens per answer; in policy optimisation at most `generation.max_completion_length`."""
    temperature: NonNegativeFloat = 0.0
    """0 decodes greedily, which makes evaluation repeatable."""


@section
class LoggingConfig:
    """What is written while the run goes on. `metrics.jsonl` is always written."""

    steps: PositiveInt = 10
    """Log every so many steps (TRL)."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Services that also get the metrics; empty sends nothing anywhere."""
    run_name: str | None = None
    """Title of the run in the report and at logging services; None takes the output folder's name."""
    samples: NonNegativeInt = 4
    """Held-out answers written to `samples.jsonl` at each evaluation; 0 writes none."""
    rollouts: bool = True
    """Store every sampled completion with its rewards under `rollouts/` (policy optimisation)."""


@section
class RewardConfig:
    """One reward of a run. A plain string stands for `{type: string}`."""

    type: Text
    """A built-in name, `file.py:function` or `package.module:function`."""
    weight: float = 1.0
    """Factor in the weighted sum (TRL)."""
    name: str | None = None
    """Name in logs, unique in the run; None takes the type's."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword parameters of the reward, as listed by its signature."""
    threshold: float | None = None
    """Turn the score into 1 at or above this value, else 0; None leaves it."""
    normalization: Literal["none", "minmax"] = "none"
    """minmax maps the declared range to [0, 1]."""
    deadline: PositiveFloat | None = None
    """Most seconds per text, in place of the reward's own deadline."""
    on_error: Literal["raise", "skip"] = "raise"
    """A reward that raises stops the run, or is counted and gives no score, which leaves the row out (`skip`)."""


Reward = Annotated[RewardConfig, BeforeValidator(_as_reward)]


@section
class CacheConfig:
    """Where prepared data are kept."""

    dir: str | None = None
    """Folder of the data cache; None takes the `datasets` library's own (`HF_DATASETS_CACHE`)."""
