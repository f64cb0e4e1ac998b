"""The sections that SFT and RL runs share: model, data, training, generation, evaluation, logging, rewards, cache.

Each default is stated here once and names its source. "TRL" means the value of the tested TRL release, "Transformers"
that of its `TrainingArguments`; both are passed on explicitly, because backends change their own defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aligntune.core.config.base import section
from aligntune.errors import ConfigurationError

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
class ReadConfig:
    """How the files of a source are read. A key that the kind of source does not have is refused."""

    delimiter: Annotated[str, MinLen(1), MaxLen(1)] | None = None
    """What stands between CSV cells; None takes the one of `,` `;` tab `|` that the header uses most."""
    header: bool | Annotated[list[str], MinLen(1)] = True
    """Whether the first CSV line names the columns; false calls them column_1, column_2 ..., a list names them."""
    encoding: Text = "utf-8"
    """Character encoding of text files, by Python's name for it (`latin-1`, `utf-16`); a byte order mark is dropped."""
    max_line_mb: PositiveFloat = 64.0
    """Longest line of a JSON Lines file, or CSV row, in MB; a longer one is no row but a broken file (ours)."""
    rows_at: str | None = None
    """Dotted path to the list of rows inside a JSON document (`data.items`)."""
    pattern: str | None = None
    """Folders: only files whose path below the folder matches, as `2024/*.jsonl` or `**/*.csv`."""
    recursive: bool = True
    """Folders: read what is in folders below, too."""
    types: Annotated[list[Literal["json", "csv", "parquet", "conll", "text"]], MinLen(1)] | None = None
    """Folders: only these kinds of files; None takes data files, and text files where there are no others."""


@section
class FilterConfig:
    """Which rows stay. What is left out is counted, and named by its place."""

    min_chars: PositiveInt | None = None
    """Leave out rows of fewer characters, prompt and answers together."""
    max_chars: PositiveInt | None = None
    """Leave out rows of more characters, prompt and answers together."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Leave out rows that say the same as an earlier one: letter for letter but for case and white space (`exact`), or
    by the share of their word triples in common (`near`, MinHash; Broder 1997). `near` needs aligntune[data]."""
    near_threshold: OpenFraction = 0.8
    """Jaccard similarity from which two rows are near duplicates (Lee et al. 2022, arXiv:2107.06499: 0.8)."""
    languages: Annotated[list[str], MinLen(1)] | None = None
    """Leave out rows in other languages than these, by ISO 639-1 code (`[en, de]`). Needs aligntune[rewards]."""


@section
class DatasetConfig:
    """One source of rows. A plain string stands for `{name: string}`."""

    name: Text
    """A hub id, a json, jsonl, csv or parquet file, a folder, or the http(s) address of a file; `name#500` draws 500
    rows."""
    subset: str | None = None
    """The hub data set's configuration (`main` for gsm8k)."""
    split: str = "train"
    """The split, or a slice of it: `train[:10%]`. Files and folders have the split `train` unless named."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    preset: str | None = None
    """A known data set's column mapping and template (alpaca, gsm8k, hh_rlhf ...: `aligntune data presets`), or
    `file.yaml:name`."""
    format: (
        Literal[
            "alpaca",
            "prompt_completion",
            "messages",
            "sharegpt",
            "text",
            "preference",
            "ranked",
            "stepwise",
            "unpaired",
            "unpaired_messages",
            "classification",
            "tokens",
            "verl",
            "tokenized",
            "prompt",
        ]
        | None
    ) = None
    """What the rows are; None detects it from the columns, and says what it found."""
    column_mapping: dict[str, str] | None = None
    """Our column name: the source's column name, as `{prompt: question}`."""
    columns: Annotated[list[str], MinLen(1)] | None = None
    """Read these columns of the source only; None reads all."""
    prompt_template: str | None = None
    """A Jinja template over the row's columns that makes the prompt."""
    system_prompt: str | None = None
    """A system message put before each conversation."""
    max_samples: PositiveInt | None = None
    """Keep this many rows, drawn with the run's seed; None keeps all."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read at all stops the run, or is left out, counted and written to `skipped_rows.jsonl`."""
    streaming: bool = False
    """Read rows as they are trained on, in file order, in bounded memory (supervised tasks and pairs; needs
    `train.max_steps`)."""
    read: ReadConfig = Field(default_factory=ReadConfig)
    """How files are read."""
    filter: FilterConfig = Field(default_factory=FilterConfig)
    """Which rows stay."""
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
    time_limit: Text | None = None
    """Stop with a checkpoint after so much time, as `3h`, `1h30m` or `90s`; the last step and the checkpoint fit in.
    None sets no limit."""
    stop_grace: PositiveFloat | None = None
    """Seconds from SIGTERM in which a step may still end and be saved; then the run stops at once. None waits for the
    step, however long it takes."""
    auto_batch: bool = False
    """Where memory runs out, halve `per_device_batch_size`, double `gradient_accumulation_steps` and go on from the
    last checkpoint; off stops and says what to change (ours)."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better value, and keep the best one's weights (Prechelt
    1998); None trains to the end. Needs `evaluation.every`."""
    best_metric: Text | None = None
    """Which value says that an evaluation is the best, by its name in `metrics.jsonl` (`eval_reward`,
    `eval/sums/accuracy`); None takes the first that there is of F1, mean squared error, preference accuracy, AUC,
    reward, negative log-likelihood, and the first task's headline."""
    best_mode: Literal["max", "min"] | None = None
    """Whether larger or smaller is better; None takes the metric's own direction. Needs `best_metric`."""
    keep_best: Literal["none", "checkpoint", "model"] = "none"
    """checkpoint: write one at each new best evaluation, and keep the best whatever `save_total_limit` says. model: end
    with the weights of the best evaluation, as early stopping does (neither in Transformers)."""
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
    tasks: list[Text | dict[str, Any]] = Field(default_factory=list)
    """Tasks that are measured with the model in memory, as in an evaluation file: names of the library (`gsm8k`),
    `{use: ..., ...}`, or `{name, kind, dataset, ...}`."""
    every: PositiveInt | None = None
    """Evaluate every so many steps, and at the end; None evaluates at the end only. Needs `dataset` or `tasks`."""
    at_start: bool = False
    """Evaluate before the first step, too."""
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
    display: Literal["auto", "plain", "off"] = "auto"
    """auto: a live view on a terminal, and elsewhere a line every 30 seconds; plain: a line for each row of the log;
    off: nothing (ours)."""
    samples: NonNegativeInt = 4
    """Held-out answers written to `samples.jsonl` at each evaluation; 0 writes none."""
    samples_at: Annotated[list[Fraction], MinLen(1)] | None = None
    """Write the answers at these shares of training instead, as `[0, 0.5, 1]`: before the first step, half way, and
    with the model that is saved."""
    sample_prompts: Annotated[list[Text], MinLen(1)] | None = None
    """Prompts of your own to answer, in place of held-out ones."""
    rollouts: bool = True
    """Store every sampled completion with its rewards under `rollouts/` (policy optimisation)."""


METRIC_ONLY = "metric_only"
"""The reward that wraps another one and has no weight, whatever is written."""


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

    def __post_init__(self) -> None:
        if self.type == METRIC_ONLY:
            if self.weight not in (0, 1):
                raise ConfigurationError(
                    f"a reward of type {METRIC_ONLY} has the weight {self.weight:g}, and never counts",
                    hint="remove the weight",
                )
            self.weight = 0.0


Reward = Annotated[RewardConfig, BeforeValidator(_as_reward)]


@section
class JudgeConfig:
    """A language model that judges texts: behind an OpenAI-compatible endpoint, or a local one."""

    kind: Literal["openai", "local"] = "openai"
    """openai: a chat endpoint in OpenAI's form (vLLM, llama.cpp, Ollama and most services). local: a Transformers model
    in this process."""
    model: Text
    """The endpoint's name of the model; local: a folder or hub id, of a model with a chat template."""
    url: Text | None = None
    """openai: the endpoint up to `/chat/completions`, as `http://localhost:8000/v1`."""
    api_key_env: Text | None = None
    """openai: name of the environment variable with the API key, which is written nowhere; None sends none."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest verdict, which makes judging repeatable as far as the endpoint does."""
    max_tokens: PositiveInt = 512
    """Most tokens of a verdict, its reason and a reasoning model's thought included (a verdict takes about 60)."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """openai: further fields of the request's body; null removes one that is sent otherwise, as `{max_tokens: null,
    max_completion_tokens: 2000}`."""
    timeout: PositiveFloat = 60.0
    """openai: most seconds for one attempt, from the connection to the last byte (a tenth of OpenAI's client)."""
    retries: NonNegativeInt = 5
    """openai: further attempts after a status of 429 or 5xx, a timeout or a broken connection (OpenAI's client: 2)."""
    requests_per_minute: PositiveFloat | None = None
    """openai: most attempts a minute, evenly spaced; None sets no limit but what the endpoint answers."""
    concurrency: PositiveInt = 8
    """openai: requests under way at once."""
    cache: Text | None = None
    """Folder in which answers are kept, so that no question is paid for twice; None keeps none."""
    price_in: NonNegativeFloat | None = None
    """openai: price of a million tokens read, in the currency of `max_cost`."""
    price_out: NonNegativeFloat | None = None
    """openai: price of a million tokens written."""
    max_cost: PositiveFloat | None = None
    """openai: stop with an error once the answers of this process have cost this much; None sets no limit."""
    revision: str | None = None
    """local: branch, tag or commit of the hub repository."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """local: of the weights; auto as in `model.precision`. The device is the run's."""
    batch_size: PositiveInt = 8
    """local: questions per batch (Transformers)."""
    trust_remote_code: bool = False
    """local: run Python code from the model's repository. Only for code that you have read (Transformers)."""

    def faults(self) -> list[tuple[str, str]]:
        """What types cannot check, as (key, sentence): missing, contradictory or inert settings, secrets."""
        here = {"openai": LOCAL_JUDGE, "local": ENDPOINT_JUDGE}[self.kind]
        default = JudgeConfig(model=self.model, url=None)
        faults = [
            (key, f"has no effect with kind {self.kind}; remove it")
            for key in here
            if getattr(self, key) != getattr(default, key)
        ]
        if self.kind == "local":
            return faults
        if self.url is None:
            faults.append(("url", "is missing; give the endpoint's address, as http://localhost:8000/v1"))
        elif not self.url.startswith(("http://", "https://")):
            faults.append(("url", f"must begin with http:// or https:// (got '{self.url}')"))
        elif "@" in self.url or "?" in self.url:
            faults.append(("url", "holds a user name, a key or a query; name an environment variable in api_key_env"))
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            faults.append(("api_key_env", "must be the name of an environment variable, not the key itself"))
        fixed = sorted({"messages", "model", "stream", "n"} & set(self.extra))
        faults += [(f"extra.{key}", "is decided by the judge itself; remove it") for key in fixed]
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            faults.append(("max_cost", "needs price_in and price_out; set both"))
        return faults


LOCAL_JUDGE = ("revision", "precision", "batch_size", "trust_remote_code")
ENDPOINT_JUDGE = (
    "url", "api_key_env", "extra", "timeout", "retries", "requests_per_minute", "concurrency", "price_in", "price_out",
    "max_cost",
)  # fmt: skip


@section
class CacheConfig:
    """Where prepared data are kept, so that a second run on the same rows need not prepare them again."""

    dir: str | None = None
    """Folder of prepared data and downloads, the hub's too; None takes `ALIGNTUNE_CACHE`, else `~/.cache/aligntune`,
    and the `datasets` library's own folder for the hub's (`HF_DATASETS_CACHE`)."""
    enabled: bool = True
    """Keep prepared and tokenised rows, and take them where nothing has changed that they are made of."""
    max_gb: PositiveFloat = 20.0
    """Most prepared data to keep, in GB; what was unused for longest goes first (ours)."""
