"""Configuration: keys, types, precedence, overrides, the same run three ways, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import yaml

from aligntune.core.config import (
    UNSET,
    RLConfig,
    SFTConfig,
    apply_overrides,
    build_config,
    changed_keys,
    dump_config,
    field_docs,
    load_config,
    parse_yaml,
    read_yaml,
)
from aligntune.core.config.aliases import dotted_keys, keyword_table, keywords_to_keys
from aligntune.errors import ConfigurationError

GRPO = {
    "algo": {"name": "grpo", "num_generations": 4},
    "model": {"name_or_path": "m"},
    "datasets": [{"name": "d.jsonl"}],
    "rewards": ["length"],
}
SFT = {"task": "instruction_following", "model": {"name_or_path": "m"}, "dataset": "d.jsonl"}
DPO = {"algo": "dpo", "model": {"name_or_path": "m"}, "datasets": "d.jsonl"}


def refused(raw, *overrides):
    with pytest.raises(ConfigurationError) as caught:
        build_config(apply_overrides(raw, overrides))
    return caught.value


def test_kinds_are_told_apart():
    assert isinstance(build_config(SFT), SFTConfig)
    assert isinstance(build_config(GRPO), RLConfig)
    assert "both `algo` and `task`" in refused({**SFT, **GRPO}).message
    error = refused({"modle": {}, "dataset": "d"})
    assert "neither" in error.message
    assert "did you mean 'model'" in error.message


def test_defaults_depend_on_the_algorithm_and_are_filled_in():
    assert build_config(SFT).train.learning_rate == 2e-5
    assert build_config(DPO).train.learning_rate == 1e-6
    assert build_config(apply_overrides(DPO, ["train.learning_rate=3e-4"])).train.learning_rate == 3e-4


def test_all_faults_come_in_one_message_with_paths_and_nearest_names():
    error = refused(
        {
            "algo": {"name": "grpo", "betaa": 1},
            "model": {"name_or_path": "m", "pef": {"r": 1}},
            "datasets": [{"name": "d", "splitt": "x"}],
            "train": {"learning_rate": -1, "max_stepz": 3},
            "rewards": [{"type": "length", "weigth": 1}],
        }
    )
    for part in (
        "algo.betaa: unknown key; did you mean 'beta'?",
        "model.pef: unknown key; did you mean 'peft'?",
        "datasets.0.splitt: unknown key; did you mean 'split'?",
        "train.learning_rate: input should be greater than 0 (got -1)",
        "train.max_stepz: unknown key; did you mean 'max_steps'?",
        "rewards.0.weigth: unknown key; did you mean 'weight'?",
    ):
        assert part in error.message
    assert len(error.context["faults"]) == 6


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.learning_rate=fast", "train.learning_rate"),
        ("train.max_steps=2.5", "train.max_steps"),
        ("train.warmup_ratio=1.0", "train.warmup_ratio"),
        ("model.precision=fp8", "model.precision"),
        ("backend=unslot", "backend"),
        ("algo.num_generations=1", "algo.num_generations"),
    ],
)
def test_wrong_values_name_their_key(override, part):
    assert part in refused(GRPO, override).message


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({**SFT, "output-dir": "x"}, "output-dir: unknown key; did you mean 'output_dir'"),
        ({**SFT, "task": {"name": "instruction_following", "pack-ing": True}}, "task.pack-ing: unknown key"),
        ({**SFT, "train": {"learning-rate": 1e-3}}, "train.learning-rate: unknown key; did you mean 'learning_rate'"),
        ({**SFT, "dataset[0]": "x"}, "dataset[0]: unknown key; did you mean 'dataset'"),
    ],
)
def test_keys_of_any_spelling_are_named(raw, path):
    error = refused(raw)
    assert path in f"{error.message}; {error.hint}"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.learning_rate=.inf", "train.learning_rate"),
        ("train.learning_rate=true", "train.learning_rate: must be a number (got True)"),
        ("train.seed=true", "train.seed: must be a number"),
        ("train.gradient_checkpointing='yes'", "train.gradient_checkpointing: must be true or false (got 'yes')"),
        ("train.seed=4294967296", "train.seed"),
        ("output_dir=''", "output_dir"),
    ],
)
def test_values_that_are_read_as_something_else_are_refused(override, part):
    assert part in refused(SFT, override).message


def test_unreadable_yaml_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigurationError, match="contains itself"):
        build_config(parse_yaml("task: instruction_following\ntrain: &t {adam_beta1: *t}"))


def test_a_task_refuses_what_belongs_to_algorithms():
    raw = {"task": "text_generation", "model": {"name_or_path": "m"}, "dataset": "d"}
    with pytest.raises(ConfigurationError, match=r"rewards: belongs to runs with an algorithm \(`algo:`\)"):
        load_config(raw | {"rewards": ["length"]})
    with pytest.raises(ConfigurationError, match="beta: is not an option of text_generation") as caught:
        load_config(raw | {"task": {"name": "text_generation", "beta": 0.1}})
    assert "dpo" in caught.value.hint


def test_unknown_algorithm_names_the_nearest_and_a_task_is_pointed_at_its_section():
    assert "did you mean 'grpo'" in refused({**GRPO, "algo": "gpro"}).hint
    assert "write `task: instruction_following`" in refused({**GRPO, "algo": "sft"}).hint


def test_batch_arithmetic_is_shown():
    error = refused(GRPO, "algo.num_generations=3")
    assert "8 x steps per generation 1 = 8, and 8 / 3 = 2.67 prompts" in error.message
    assert build_config(apply_overrides(GRPO, ["algo.num_generations=3", "train.per_device_batch_size=9"]))


@pytest.mark.parametrize(
    ("raw", "override", "reason"),
    [
        (DPO, "rewards=[length]", "learns from pairs"),
        (DPO, "generation.temperature=0.7", "samples nothing"),
        (DPO, "logging.rollouts=false", "no rollouts"),
        (SFT, "evaluation.every=5", "no `evaluation.dataset`"),
        (SFT, "dataset.weight=2", "only one data set"),
        (SFT, "train.save_total_limit=2", "no checkpoints"),
        (DPO, "algo.discopop_tau=0.1", "only the loss discopop"),
    ],
)
def test_keys_without_effect_are_refused(raw, override, reason):
    assert reason in refused(raw, override).message + refused(raw, override).hint


def test_contradictions_are_refused():
    assert "excludes" in refused(SFT, "train.warmup_steps=3", "train.warmup_ratio=0.1").message
    assert "adapters" in refused(SFT, "model.quantization=4bit").message
    both = refused({**SFT, "train": {"max_steps": 3, "num_epochs": 2}})
    assert "train.num_epochs" in both.message


def test_precedence_defaults_base_file_keywords_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({**SFT, "train": {"seed": 1, "max_steps": 1, "weight_decay": 0.1}})
    )
    (tmp_path / "run.yaml").write_text("base: base.yaml\ntrain: {max_steps: 2, learning_rate: 1e-3}\n")
    config = load_config(
        tmp_path / "run.yaml",
        keywords={"train.learning_rate": 2e-3, "train.seed": UNSET, "train.max_grad_norm": 2.0},
        overrides=["train.max_grad_norm=3"],
    )
    train = config.train
    assert train.adam_beta1 == 0.9  # default
    assert (train.seed, train.weight_decay) == (1, 0.1)  # base, and UNSET does not beat it
    assert train.max_steps == 2  # file over base
    assert train.learning_rate == 2e-3  # keyword over file
    assert train.max_grad_norm == 3  # override over keyword


def test_base_circles_and_missing_files_are_told(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(ConfigurationError, match="leads back"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigurationError, match=r"no such config file") as caught:
        read_yaml(tmp_path / "aa.yaml")
    assert "did you mean 'a.yaml'" in caught.value.hint


def test_yaml_reads_exponents_and_refuses_double_keys():
    assert parse_yaml("a: 1e-5\nb: -2E+3\nc: 1.5e3\nd: e5")["a"] == 1e-5
    assert parse_yaml("b: -2E+3") == {"b": -2000.0}
    assert parse_yaml("d: 1e5x") == {"d": "1e5x"}
    with pytest.raises(ConfigurationError, match="stands twice"):
        parse_yaml("a: 1\na: 2")
    with pytest.raises(ConfigurationError, match=r"x\.yaml:2"):
        parse_yaml("a: 1\n b: 2", "x.yaml")
    with pytest.raises(ConfigurationError):
        parse_yaml("a: !!python/object/apply:os.system ['true']")


def test_the_length_is_one_choice_and_the_later_one_wins(tmp_path):
    raw = {**SFT, "train": {"num_epochs": 2.0}}
    assert build_config(apply_overrides(raw, ["train.max_steps=5"])).train.max_steps == 5
    assert load_config({**SFT, "train": {"max_steps": 5}}, keywords={"train.num_epochs": 1.0}).train.max_steps is None
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "run.yaml").write_text("base: base.yaml\ntrain: {max_steps: 7}\n")
    assert load_config(tmp_path / "run.yaml").train.max_steps == 7


def test_yaml_anchors_and_merge_keys_work():
    text = "a: &a {seed: 1, max_steps: 2}\nb: {<<: *a, seed: 3}"
    assert parse_yaml(text)["b"] == {"seed": 3, "max_steps": 2}


def test_overrides_reach_lists_and_replace_an_algorithm():
    raw = apply_overrides(GRPO, ["rewards.0.weight=2", "datasets.0.split=test"])
    assert raw["rewards"] == [{"type": "length", "weight": 2}]
    assert raw["datasets"][0]["split"] == "test"
    assert apply_overrides(GRPO, ["algo.name=dpo"])["algo"] == {"name": "dpo"}
    assert GRPO["rewards"] == ["length"]  # the input is left alone
    with pytest.raises(ConfigurationError, match="not an override"):
        apply_overrides(GRPO, ["train.seed"])


def test_the_same_run_as_yaml_keywords_and_overrides():
    text = """
    algo: {name: grpo, num_generations: 4, beta: 0.0}
    model: {name_or_path: m, peft: {r: 8}}
    datasets: [{name: d.jsonl, split: "train[:10%]"}]
    rewards: [{type: length, weight: 0.5}]
    train: {learning_rate: 1e-4, max_steps: 7, seed: 3}
    generation: {temperature: 0.8}
    """
    from_yaml = build_config(parse_yaml(text))
    keys = keywords_to_keys(
        "rl",
        {
            "algorithm": "grpo", "num_generations": 4, "beta": 0.0, "model_name": "m", "lora_r": 8,
            "dataset_name": "d.jsonl", "split": "train[:10%]", "reward_functions": ["length"],
            "reward_function_weights": [0.5], "learning_rate": 1e-4, "max_steps": 7, "seed": 3, "temperature": 0.8,
            "top_p": UNSET,
        },
    )  # fmt: skip
    from_keywords = load_config({"datasets": [{}]}, keywords=keys)
    flags = [
        "algo.name=grpo", "algo.num_generations=4", "algo.beta=0.0", "model.name_or_path=m", "model.peft.r=8",
        "datasets.0.name=d.jsonl", "datasets.0.split=train[:10%]", "rewards=[{type: length, weight: 0.5}]",
        "train.learning_rate=1e-4", "train.max_steps=7", "train.seed=3", "generation.temperature=0.8",
    ]  # fmt: skip
    from_flags = load_config({"datasets": [{}]}, overrides=flags)
    assert from_yaml == from_keywords == from_flags


@pytest.mark.parametrize("raw", [SFT, DPO, GRPO], ids=["sft", "dpo", "grpo"])
def test_the_resolved_file_loads_back_to_the_same_run(raw):
    config = build_config({**raw, "train": {"max_steps": 3, "save_steps": 1}})
    again = build_config(parse_yaml(dump_config(config)))
    assert again == config == load_config(config)
    assert "learning_rate" in dump_config(config)
    assert pickle.loads(pickle.dumps(config)) == config


def test_changed_keys_are_those_that_differ():
    config = build_config({**SFT, "train": {"max_steps": 3, "seed": 42}})
    assert changed_keys(config) == {
        "model.name_or_path", "dataset.name", "train.max_steps", "train.learning_rate",
    }  # fmt: skip


def test_keywords_that_nobody_knows_are_refused_with_the_nearest():
    with pytest.raises(ConfigurationError) as caught:
        keywords_to_keys("sft", {"learning_rat": 1})
    assert "did you mean 'learning_rate'" in caught.value.hint
    with pytest.raises(ConfigurationError, match="2 reward_functions have 1 weights"):
        keywords_to_keys("rl", {"reward_functions": ["a", "b"], "reward_function_weights": [1]})
    with pytest.raises(ConfigurationError, match="use_peft is False"):
        keywords_to_keys("sft", {"use_peft": False, "lora_r": 3})
    with pytest.raises(ConfigurationError) as caught:
        keywords_to_keys("sft", {"beta": 1, "task_type": "instruction_following"})
    assert caught.value.message == "'beta' is no parameter of instruction_following"
    assert caught.value.hint.startswith("it belongs to ")
    assert {"dpo,", "grpo,"} <= set(f"{caught.value.hint},".split())
    with pytest.raises(ConfigurationError, match="'rewards' is no parameter"):
        keywords_to_keys("sft", {"rewards": ["length"]})
    assert keywords_to_keys("sft", {"use_peft": True}) == {"model.peft": {}}
    assert keywords_to_keys("rl", {"train__adam_beta1": 0.8}) == {"train.adam_beta1": 0.8}


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_the_keyword_table_points_at_keys_that_exist(kind):
    known = dotted_keys(kind)
    for keyword, dotted in keyword_table(kind).items():
        dotted = dotted.replace("datasets.0.", "evaluation.dataset.")
        dotted = "evaluation.dataset." + dotted[8:] if dotted.startswith("dataset.") else dotted
        own = dotted in ("algo.name", "task.name")
        assert own or dotted in known or dotted.startswith("evaluation.dataset"), keyword


def test_every_field_is_documented_with_its_source():
    from aligntune.algorithms.base import algorithm_names, get_algorithm, get_task, task_names
    from aligntune.core.config import sections

    classes = [c for c in vars(sections).values() if dataclasses.is_dataclass(c) and c.__module__ == sections.__name__]
    classes += [SFTConfig, RLConfig, *map(get_algorithm, algorithm_names()), *map(get_task, task_names())]
    for cls in classes:
        docs = field_docs(cls)
        for field in dataclasses.fields(cls):
            assert len(docs.get(field.name, "")) > 10, f"{cls.__name__}.{field.name}"


def test_constraints_survive_an_overridden_default():
    from aligntune.algorithms.base import ALGORITHMS, Schema, algorithm, get_algorithm

    @algorithm("grpo_test_variant", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
    class Variant(get_algorithm("grpo")):
        beta: float = 0.0

    try:
        assert Variant().beta == 0.0
        assert refused({**GRPO, "algo": {"name": "grpo_test_variant", "num_generations": 1}})
    finally:
        ALGORITHMS.remove("grpo_test_variant")
