"""What is known about well-known data sets: format, column names, the hub's subset, where the gold answer stands.

A preset is one entry of `PRESETS`. It applies by name (`preset: gsm8k`) and to the hub ids that it lists; the
user's own `format` and `column_mapping` come first. Each entry cites the data set's paper or page.

A user's own stand in a YAML file, `preset: presets.yaml:support`:

    support:
      format: prompt_completion
      column_mapping: {prompt: question, completion: reply}

What a preset cannot do is change values: `answer_end` takes off a mark at the end of answers, nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest


@dataclass(frozen=True)
class Preset:
    """One known data set.

    Args:
        format: as `DatasetConfig.format`.
        column_mapping: as `DatasetConfig.column_mapping`; `reference` counts where prompts are trained on.
        hub_ids: hub names that it applies to unasked.
        subset: the hub's configuration where it has several.
        split: the hub's split that holds the training rows, where it is not called `train`.
        reference_after: the gold answer is what follows this mark in the completion.
        prompt_template: as `DatasetConfig.prompt_template`.
        header: column names of CSV files that have no header row.
        answer_end: a mark that ends answers and is no part of them.
    """

    format: str
    column_mapping: Mapping[str, str] = field(default_factory=dict)
    hub_ids: tuple[str, ...] = ()
    subset: str | None = None
    split: str | None = None
    reference_after: str | None = None
    prompt_template: str | None = None
    header: tuple[str, ...] | None = None
    answer_end: str | None = None


_WITH_INPUT = "{{ instruction }}{% if input %}\n\n{{ input }}{% endif %}"
_CHOICES = (
    "{% if question is mapping %}{{ question.stem }}\n"
    "{% for c in question.choices %}\n{{ c.label }}. {{ c.text }}{% endfor %}"
    "{% else %}{{ question }}\n"
    "{% for text in choices.text %}\n{{ choices.label[loop.index0] }}. {{ text }}{% endfor %}{% endif %}"
)
_LETTERS = "{{ question }}\n\nA. {{ A }}\nB. {{ B }}\nC. {{ C }}\nD. {{ D }}"
_NUMBERED = "{{ question }}\n\n0. {{ choice0 }}\n1. {{ choice1 }}\n2. {{ choice2 }}\n3. {{ choice3 }}"
_TASK = "{{ instruction }}{% if instances[0].input %}\n\n{{ instances[0].input }}{% endif %}"

PRESETS: dict[str, Preset] = {
    # ---- instructions and chat
    # Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca
    "alpaca": Preset("alpaca", hub_ids=("tatsu-lab/alpaca", "yahma/alpaca-cleaned")),
    # Conover et al. 2023, databricks-dolly-15k
    "dolly": Preset(
        "alpaca",
        {"instruction": "instruction", "input": "context", "output": "response"},
        hub_ids=("databricks/databricks-dolly-15k",),
    ),
    # Wang et al. 2023, arXiv:2212.10560: seed tasks, the answer in the first instance
    "self_instruct": Preset("prompt_completion", {"completion": "instances.0.output"}, prompt_template=_TASK),
    # Bitext customer support, github.com/bitext/customer-support-llm-chatbot-training-dataset
    "bitext": Preset(
        "prompt_completion",
        {"prompt": "instruction", "completion": "response"},
        hub_ids=("bitext/Bitext-customer-support-llm-chatbot-training-dataset",),
    ),
    "bitext_intents": Preset("classification", {"text": "instruction", "label": "intent"}),
    # github.com/peremartra/FinLLMOpt, RetailBanking-Conversations
    "retail_banking": Preset("prompt_completion", {"prompt": "rol1", "completion": "rol2"}),
    # Glaive function calling in ShareGPT form, as LLaMA-Factory ships it
    "glaive_tools": Preset("sharegpt"),
    # Ding et al. 2023, arXiv:2305.14233, as Tunstall et al. 2023 filtered it (arXiv:2310.16944)
    "ultrachat": Preset("messages", hub_ids=("HuggingFaceH4/ultrachat_200k",), split="train_sft"),
    # Summaries of P3 (Sanh et al. 2022, arXiv:2110.08207) as Self-Instruct stores them
    "summarization": Preset("prompt_completion", answer_end="<|endoftext|>"),
    # Eldan and Li 2023, arXiv:2305.07759
    "tinystories": Preset("text", hub_ids=("roneneldan/TinyStories",)),
    # ---- answers that can be checked
    # Cobbe et al. 2021, arXiv:2110.14168, section 2: the final line of a solution is "#### <answer>"
    "gsm8k": Preset(
        "prompt_completion",
        {"prompt": "question", "completion": "answer"},
        hub_ids=("openai/gsm8k", "gsm8k"),
        subset="main",
        reference_after="####",
    ),
    # Patel et al. 2021, arXiv:2103.07191
    "svamp": Preset(
        "prompt",
        {"reference": "Answer"},
        hub_ids=("ChilleD/SVAMP",),
        prompt_template="{{ Body }} {{ Question }}",
    ),
    # Austin et al. 2021, arXiv:2108.07732
    "mbpp": Preset(
        "prompt_completion",
        {"prompt": "text", "completion": "code"},
        hub_ids=("google-research-datasets/mbpp",),
        subset="full",
    ),
    # Chen et al. 2021, arXiv:2107.03374
    "human_eval": Preset(
        "prompt_completion",
        {"prompt": "prompt", "completion": "canonical_solution"},
        hub_ids=("openai/openai_humaneval",),
        split="test",
    ),
    # Zhou et al. 2023, arXiv:2311.07911
    "ifeval": Preset("prompt", {"prompt": "prompt"}, hub_ids=("google/IFEval",)),
    # Yu et al. 2018, arXiv:1809.08887
    "spider": Preset("prompt_completion", {"prompt": "question", "completion": "query"}, hub_ids=("xlangai/spider",)),
    # Clark et al. 2018, arXiv:1803.05457, in its own JSON form and in the hub's
    "arc": Preset("prompt", {"reference": "answerKey"}, prompt_template=_CHOICES),
    # Hendrycks et al. 2021, arXiv:2009.03300: no header row; a common copy has one, and numbers
    "mmlu": Preset(
        "prompt",
        {"reference": "answer"},
        prompt_template=_LETTERS,
        header=("question", "A", "B", "C", "D", "answer"),
    ),
    "mmlu_numbered": Preset("prompt", {"reference": "answer"}, prompt_template=_NUMBERED),
    # Zellers et al. 2019, arXiv:1905.07830: the number of the right ending
    "hellaswag": Preset("prompt", {"prompt": "ctx", "reference": "label"}, hub_ids=("Rowan/hellaswag",)),
    # Lin et al. 2022, arXiv:2109.07958: the CSV file; answer lists are joined by "; "
    "truthfulqa": Preset("prompt_completion", {"prompt": "Question", "completion": "Best Answer"}),
    # Roettger et al. 2024, arXiv:2308.01263
    "xstest": Preset("prompt", {"prompt": "prompt", "reference": "label"}, hub_ids=("walledai/XSTest",)),
    # ---- preferences
    # Bai et al. 2022, arXiv:2204.05862
    "hh_rlhf": Preset("preference", hub_ids=("Anthropic/hh-rlhf",)),
    # Cui et al. 2023, arXiv:2310.01377, as Tunstall et al. 2023 made pairs of it (arXiv:2310.16944)
    "ultrafeedback": Preset(
        "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        hub_ids=("HuggingFaceH4/ultrafeedback_binarized",),
        split="train_prefs",
    ),
    # The demonstration sets of LLaMA-Factory (Zheng et al. 2024, arXiv:2403.13372)
    "dpo_en_demo": Preset("preference", {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"}),
    "kto_en_demo": Preset("unpaired_messages", {"messages": "messages", "label": "label"}),
    # Wang et al. 2024, arXiv:2306.05087: the first annotator's vote
    "pandalm": Preset(
        "ranked",
        {"first": "response1", "second": "response2", "better": "annotator1"},
        prompt_template=_WITH_INPUT,
    ),
    # Zeng et al. 2024, arXiv:2310.07641
    "llmbar": Preset(
        "ranked",
        {"prompt": "input", "first": "output_1", "second": "output_2", "better": "label"},
        hub_ids=("princeton-nlp/LLMBar",),
    ),
    # ---- labels
    # Casanueva et al. 2020, arXiv:2003.04807
    "banking77": Preset("classification", hub_ids=("PolyAI/banking77", "mteb/banking77")),
    # Davidson et al. 2017, arXiv:1703.04009: 0 hate, 1 offensive, 2 neither
    "hate_speech": Preset("classification", {"text": "tweet", "label": "class"}),
    # Derczynski et al. 2017, W17-4418
    "wnut17": Preset("tokens", hub_ids=("leondz/wnut_17",)),
    # Silveira et al. 2014; universaldependencies.org: part-of-speech tags
    "ud_english_ewt": Preset("tokens", {"tokens": "tokens", "tags": "tags"}),
}


def get_preset(name: str) -> Preset:
    """The preset called `name`, or the one of a user's file (`file.yaml:name`).

    Raises:
        ConfigurationError: unknown, with the nearest name; or the file or its entry is wrong.
    """
    file, colon, key = name.rpartition(":")
    if colon and file.lower().endswith((".yaml", ".yml")):
        return _from_file(Path(file).expanduser(), key)
    if name not in PRESETS:
        raise ConfigurationError(
            f"unknown preset '{name}'", hint=nearest(name, PRESETS) + "; one of your own is `file.yaml:name`"
        )
    return PRESETS[name]


def _from_file(path: Path, key: str) -> Preset:
    from aligntune.core.config import read_yaml

    listed = read_yaml(path)
    if key not in listed:
        raise ConfigurationError(f"{path} has no preset '{key}'", hint=nearest(key, map(str, listed)))
    raw, known = listed[key], {f.name: f for f in fields(Preset)}
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: preset '{key}' is no mapping", hint="write `format`, `column_mapping` ...")
    for name, value in raw.items():
        if name not in known:
            raise ConfigurationError(f"{path}: preset '{key}' has no key '{name}'", hint=nearest(str(name), known))
        if not _fits(name, value):
            kind = "a mapping of texts" if name == "column_mapping" else "a list of texts" if name in _LISTS else "text"
            raise ConfigurationError(f"{path}: {key}.{name} must be {kind}", hint="correct the file")
    if "format" not in raw:
        raise ConfigurationError(f"{path}: preset '{key}' needs `format`", hint="prompt_completion, messages ...")
    from aligntune.data.formats import FORMATS

    if raw["format"] not in FORMATS:
        raise ConfigurationError(
            f"{path}: {key}.format: unknown format '{raw['format']}'", hint=nearest(raw["format"], FORMATS)
        )
    values: dict[str, Any] = {name: tuple(value) if name in _LISTS else value for name, value in raw.items()}
    return Preset(**values)


_LISTS = ("hub_ids", "header")


def _fits(name: str, value: Any) -> bool:
    if name == "column_mapping":
        return isinstance(value, dict) and all(isinstance(v, str) for kv in value.items() for v in kv)
    if name in _LISTS:
        return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    return isinstance(value, str)


def preset_values(name: str | None) -> dict[str, Any] | None:
    """What a named preset says, as plain values; None without one."""
    return None if name is None else asdict(get_preset(name))


def preset_of_hub_id(hub_id: str) -> str | None:
    """The preset that lists this hub id, or None."""
    return next((name for name, preset in PRESETS.items() if hub_id in preset.hub_ids), None)
