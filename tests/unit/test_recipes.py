"""Recipes: each loads alone, resolves, is described, names its own command, and states where each number comes from."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligntune import recipes
from aligntune.algorithms.base import Schema
from aligntune.core.backend_factory import describe
from aligntune.core.config import load_config
from aligntune.data import prepare_dataset
from aligntune.errors import ConfigurationError
from aligntune.recipes import FOLDER, Recipe, copy_recipe, get_recipe, list_recipes
from aligntune.rewards import build_rewards

SOURCES = (
    "TRL scripts/sft.py", "TRL scripts/dpo.py", "TRL SFTConfig default", "TRL DPOConfig default",
    "TRL GRPOConfig default", "TRL ModelConfig default", "DPO paper", "DeepSeekMath", "torchtune",
    "mistral-finetune", "alignment-handbook", "Phi-3.5 sample_finetune.py", "Unsloth", "verl", "ours",
)  # fmt: skip
"""What a source in a trailing comment begins with; docs/recipes.md says where each one is."""

IDENTITY = {"name", "name_or_path", "type", "preset", "split", "format", "column_mapping", "prompt_template", "output_dir",
            "max_samples", "task", "prompt", "completion"}  # fmt: skip
"""Keys that say what is trained on what; they need no source."""

# name: (parameters, those in linear layers, sum of in + out features of the linear layers, layers, hidden, feed-forward,
#        vocabulary, key-value width), from the models' config.json
MODELS = {
    "meta-llama/Llama-3.2-1B": (1_235_814_400, 973_078_528, 704_512, 16, 2048, 8192, 128_256, 512),
    "meta-llama/Llama-3.2-3B-Instruct": (3_212_749_824, 2_818_572_288, 1_519_616, 28, 3072, 8192, 128_256, 1024),
    "meta-llama/Llama-3.1-8B-Instruct": (8_030_261_248, 6_979_321_856, 2_621_440, 32, 4096, 14_336, 128_256, 1024),
    "Qwen/Qwen2.5-0.5B-Instruct": (494_032_768, 357_826_560, 549_888, 24, 896, 4864, 151_936, 128),
    "Qwen/Qwen2.5-1.5B-Instruct": (1_543_714_304, 1_310_195_712, 1_154_048, 28, 1536, 8960, 151_936, 256),
    "Qwen/Qwen3-0.6B": (596_049_920, 440_401_920, 630_784, 28, 1024, 3072, 151_936, 1024),
    "Qwen/Qwen3-4B-Instruct-2507": (4_022_468_096, 3_633_315_840, 2_064_384, 36, 2560, 9728, 151_936, 1024),
    "mistralai/Mistral-7B-Instruct-v0.3": (7_248_023_552, 6_979_321_856, 2_621_440, 32, 4096, 14_336, 32_768, 1024),
    "google/gemma-2-2b-it": (2_614_341_888, 2_024_275_968, 1_297_920, 26, 2304, 9216, 256_000, 1024),
    "google/gemma-3-1b-it": (999_885_952, 697_761_792, 815_360, 26, 1152, 6912, 262_144, 256),
    "microsoft/Phi-3.5-mini-instruct": (3_821_079_552, 3_623_878_656, 1_572_864, 32, 3072, 8192, 32_064, 3072),
    "microsoft/Phi-4-mini-instruct": (3_836_021_760, 3_221_225_472, 1_441_792, 32, 3072, 8192, 200_064, 1024),
}  # fmt: skip


def model_recipes() -> list[Recipe]:
    """The recipes for model families: those that lie in the folder itself."""
    return [r for r in list_recipes() if r.path.parent == FOLDER]


def estimate(recipe: Recipe) -> float:
    """GPU memory in GB (1e9 bytes) by the sum that docs/recipes.md writes out; an upper bound at full-length rows."""
    config: Any = load_config(recipe.path)
    n, linear, features, layers, hidden, ffn, vocab, kv = MODELS[config.model.name_or_path]
    kind = getattr(config.algorithm, "key", "")
    peft, t = config.model.peft, config.train
    if peft is None:
        reference = 4 * n if kind in ("dpo", "grpo") else 0
        state = 16 * n + reference
    else:
        frozen = 0.52 * linear + 4 * (n - linear) if config.model.quantization == "4bit" else 2 * n
        state = frozen + 16 * peft.r * features
    rows = t.per_device_batch_size * (2 if kind == "dpo" else 1)
    if kind == "grpo":
        scored = config.generation.max_completion_length
        length = scored + config.generation.max_prompt_length
        sampled = t.per_device_batch_size * (config.algorithm.steps_per_generation or t.gradient_accumulation_steps)
        cache = sampled * length * layers * 2 * kv * 2
    else:
        scored = length = config.model.max_seq_length
        cache = 0
    layer = rows * length * (16 * hidden + 4 * ffn) * 2
    kept = layers * rows * length * hidden * 2 + layer if t.gradient_checkpointing else layers * layer
    logits = 12 * rows * scored * vocab
    return (1.1 * (state + max(kept + logits, cache)) + 1.5e9) / 1e9


def numbers(node: Any, path: str = "") -> list[tuple[str, int]]:
    """(dotted key, line) of every scalar in a composed YAML document, aliases where they stand first."""
    found = []
    for key, value in node.value:
        name = f"{path}{key.value}"
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for item in items:
            if isinstance(item, yaml.MappingNode):
                found += numbers(item, f"{name}.")
            else:
                found.append((name, key.start_mark.line))
    return found


def sources_of(comment: str, key: str) -> str | None:
    """The source that a trailing comment gives for a key: `a: S1; b, c: S2`, or one source for all."""
    parts = re.split(r";\s+", comment)
    named = [re.match(r"([a-z_]+(?:, [a-z_]+)*): (.+)", p) for p in parts]
    if not any(m and m[1] != "ours" for m in named):
        return comment
    return next((m[2] for m in named if m and key in m[1].split(", ")), None)


@pytest.fixture(params=[r.name for r in model_recipes()])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return get_recipe(request.param)


def test_every_family_has_sft_dpo_and_grpo_where_stated() -> None:
    kinds: dict[str, set[str]] = {}
    for r in model_recipes():
        family = re.match(r"(llama|qwen2\.5|qwen3|mistral|gemma|phi)", r.name)
        assert family, r.name
        kinds.setdefault(family[1], set()).add("sft" if r.trains == "instruction_following" else r.trains)
    assert kinds.pop("mistral") == {"sft", "dpo"}  # docs/recipes.md says why there is no GRPO
    assert kinds == {f: {"sft", "dpo", "grpo"} for f in ("llama", "qwen2.5", "qwen3", "gemma", "phi")}


def test_recipe_loads_and_is_short(recipe: Recipe) -> None:
    config = load_config(recipe.path)
    assert config.output_dir == f"runs/{recipe.name}"
    assert config.backend == "trl"
    assert config.train.learning_rate == recipe.settings["train"]["learning_rate"]
    lines = [line for line in recipe.text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 15


def test_recipe_switches_backend_in_one_line(recipe: Recipe) -> None:
    if "attn_implementation" in recipe.settings["model"]:  # its note says so
        with pytest.raises(ConfigurationError, match="attn_implementation: has no effect here"):
            load_config(recipe.path, overrides=["backend=unsloth"])
        return
    assert load_config(recipe.path, overrides=["backend=unsloth"]).backend == "unsloth"


def test_recipe_is_described_without_training(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = describe(load_config(recipe.path))
    arguments = plan["arguments"]
    assert arguments["learning_rate"] == recipe.settings["train"]["learning_rate"]
    assert arguments["output_dir"] == f"runs/{recipe.name}"
    if recipe.trains == "grpo":
        assert arguments["beta"] == recipe.settings["algo"]["beta"]
        assert arguments["max_completion_length"] == recipe.settings["evaluation"]["max_new_tokens"]
    assert list(tmp_path.iterdir()) == []


def test_rewards_pay_for_what_the_prompt_asks(recipe: Recipe) -> None:
    config: Any = load_config(recipe.path)
    if recipe.trains != "grpo":
        assert not getattr(config, "rewards", [])
        return
    answers = ["Two and two make four.\n#### 4", "<think>\n\n</think>\n\nTwo and two.\n#### 4", "#### 5", "It is 4."]
    scores = build_rewards(config.rewards).score_batch(answers, {"reference": ["4"] * len(answers)})
    assert scores.total == pytest.approx([1.2, 1.2, 0.2, 1.0])


def test_header_is_complete(recipe: Recipe) -> None:
    assert re.fullmatch(r"[A-Z].*\.", recipe.summary)
    assert "Expect" not in recipe.fields or "verl" in recipe.fields["Expect"]
    assert {"Needs", "Model", "Run", "Note"} <= set(recipe.fields)
    assert recipe.command == f"aligntune recipes copy {recipe.name} && aligntune train {recipe.name}.yaml"
    model = recipe.settings["model"]["name_or_path"]
    gated = re.match(r"meta-llama|google|mistralai", model)
    assert bool(gated) == ("hf auth login" in recipe.fields["Model"])
    assert not gated or f"https://huggingface.co/{model}," in recipe.fields["Model"].replace(" asks", ", asks")
    assert ("aligntune[quantization]" in recipe.needs) == ("quantization" in recipe.settings["model"])


def test_memory_in_header_is_the_documented_sum(recipe: Recipe) -> None:
    stated = re.search(r"with (\d+) GB \(estimate (\d+) GB", recipe.needs)
    assert stated
    gpu, needed = int(stated[1]), int(stated[2])
    assert needed == math.ceil(estimate(recipe))
    assert gpu == next(size for size in (8, 12, 16, 24, 32, 40, 48, 80) if size >= needed)


def test_every_hyperparameter_names_its_source(recipe: Recipe) -> None:
    lines = recipe.text.splitlines()
    for dotted, line in numbers(yaml.compose(recipe.text)):
        key = dotted.rpartition(".")[2]
        if key in IDENTITY:
            continue
        _, mark, comment = lines[line].partition("  # ")
        assert mark, f"{dotted} has no comment"
        source = sources_of(comment, key) or ""
        assert source.startswith(SOURCES), f"{dotted}: {comment!r}"


LOCAL = {
    "yahma/alpaca-cleaned": "alpaca/alpaca_en_demo.json",
    "openai/gsm8k": "gsm8k/train.jsonl",
    "Anthropic/hh-rlhf": "hh_rlhf/harmless-base-test.jsonl",
    "bitext/Bitext-customer-support-llm-chatbot-training-dataset": "bitext_customer_support/customer_support.csv",
}
"""Hub ids to files with the same columns; UltraFeedback's form is written by the test."""


def test_data_section_reads_rows_of_its_form(recipe: Recipe, shared: Path, tmp_path: Path) -> None:
    config: Any = load_config(recipe.path)
    source = config.sources[0]
    if source.name in LOCAL:
        path = shared / "data" / LOCAL[source.name]
    else:
        assert source.name == "trl-lib/ultrafeedback_binarized"
        path = tmp_path / "pairs.jsonl"
        asked = {"role": "user", "content": "Why?"}
        row = {f"score_{k}": 1.0 for k in ("chosen", "rejected")} | {
            k: [asked, {"role": "assistant", "content": k}] for k in ("chosen", "rejected")
        }
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    schema = config.algorithm.data
    local = dataclasses.replace(source, name=str(path), max_samples=5, split="train")
    rows = prepare_dataset(local, schema, seed=0, cache_dir=str(tmp_path / "cache")).dataset
    assert len(rows) == (5 if source.name in LOCAL else 1)
    prompt = rows[0]["prompt"]
    assert prompt[-1]["role"] == "user"
    assert all(m["role"] != "system" for m in prompt)
    if schema is Schema.PROMPT:
        assert prompt[-1]["content"].removesuffix(" /no_think").endswith("end with a line `#### <number>`.")
        assert re.fullmatch(r"-?[\d,.]+", rows[0]["reference"])
    elif schema is Schema.PREFERENCE:
        assert rows[0]["chosen"][-1]["role"] == rows[0]["rejected"][-1]["role"] == "assistant"
    else:
        assert rows[0]["completion"][0]["content"]


def test_documentation_lists_every_recipe_and_source(repo: Path) -> None:
    page = (repo / "docs" / "recipes.md").read_text(encoding="utf-8")
    for recipe in model_recipes():
        stated = re.search(r"with (\d+) GB \(estimate (\d+) GB", recipe.needs)
        assert stated
        row = f"| `{recipe.name}` | {recipe.summary.rstrip('.')} | {stated[1]} GB ({stated[2]}) |"
        assert row in page
    for source in SOURCES:
        assert source in page


def test_gemma_recipes_have_no_system_message() -> None:
    for name in ("gemma2-2b-dpo-ultrafeedback", "gemma3-1b-sft-alpaca", "gemma3-1b-grpo-gsm8k"):
        assert "system_prompt" not in yaml.dump(get_recipe(name).settings)


def test_qwen3_grpo_switches_thinking_off_in_the_prompt() -> None:
    for key in ("datasets", "evaluation"):
        assert "/no_think" in yaml.dump(get_recipe("qwen3-0.6b-grpo-gsm8k").settings[key])


def test_copy_writes_a_file_that_loads_alone(recipe: Recipe, tmp_path: Path) -> None:
    path = copy_recipe(recipe.name, tmp_path)
    assert path == tmp_path / f"{recipe.name}.yaml"
    assert path.read_text(encoding="utf-8") == recipe.text
    assert load_config(path) == load_config(recipe.path)


def test_copy_merges_a_base_and_keeps_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    (folder / "quickstart").mkdir(parents=True)
    (folder / "_base.yaml").write_text("model: {name_or_path: m}\ntrain: {max_steps: 5}\n")
    (folder / "quickstart" / "sft.yaml").write_text(
        "# Fine-tune.\n#\n# Needs:  nothing,\n#         really.\n"
        "base: ../_base.yaml\ntask: text_generation\ndataset: d.jsonl\ntrain: {learning_rate: 1e-4}\n"
    )
    monkeypatch.setattr(recipes, "FOLDER", folder)
    (found,) = list_recipes()
    assert (found.name, found.summary, found.needs) == ("quickstart-sft", "Fine-tune.", "nothing, really.")
    assert found.trains == "text_generation"
    assert get_recipe("quickstart/sft.yaml") == found
    path = copy_recipe("quickstart-sft", tmp_path / "mine.yaml")
    text = path.read_text()
    assert text.startswith("# Fine-tune.\n#\n# Needs:  nothing,\n#         really.\n")
    assert "base:" not in text
    config = load_config(path)
    assert (config.train.max_steps, config.train.learning_rate, config.model.name_or_path) == (5, 1e-4, "m")


def test_copy_refuses_to_overwrite(tmp_path: Path) -> None:
    name = "qwen3-0.6b-grpo-gsm8k"
    path = copy_recipe(name, tmp_path / "run.yaml")
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        copy_recipe(name, path)
    assert path.read_text() == "mine"
    assert copy_recipe(name, path, force=True).read_text() == get_recipe(name).text
    with pytest.raises(ConfigurationError, match="there is no folder"):
        copy_recipe(name, tmp_path / "none" / "run.yaml")


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown recipe 'qwen3-0\.6b-grpo'") as caught:
        get_recipe("qwen3-0.6b-grpo")
    assert "qwen3-0.6b-grpo-gsm8k" in (caught.value.hint or "")


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from aligntune.recipes import list_recipes; [r.trains for r in list_recipes()];"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
