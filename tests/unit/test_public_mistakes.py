"""Every public entry point answers the mistakes that people make with one of our errors, which has a hint.

`MISTAKES` has, for each public name that takes something from a user, calls with a wrong name, path, type, number or
shape. `surface.txt` says which names there are; one without an entry fails, unless `HARMLESS` says why it has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from aligntune.errors import AlignTuneError

NAN = math.nan
SFT = {"task": "instruction_following", "model": {"name_or_path": "./no-model"}, "dataset": "no-rows.jsonl"}
RL = {"algo": "dpo", "model": {"name_or_path": "./no-model"}, "datasets": ["no-rows.jsonl"]}
Call = Callable[[Any], Any]


def factory(kind: str) -> list[Call]:
    """What goes wrong with `create_sft_trainer` and `create_rl_trainer`."""
    other = RL if kind == "sft" else SFT
    return [
        lambda f: f(),
        lambda f: f(3),
        lambda f: f([]),
        lambda f: f("no-such-file.yaml"),
        lambda f: f({}),
        lambda f: f(other),
        lambda f: f(model_nam="x"),
        lambda f: f(model_name="x", dataset_name="y", max_steps="many"),
        lambda f: f(model_name="x", dataset_name="y", learning_rate=-1),
        lambda f: f(model_name="x", dataset_name="y", algorithm="nothing", task_type="nothing"),
        lambda f: f(model_name="x", dataset_name="y", backend="tlr"),
        lambda f: f({**(SFT if kind == "sft" else RL), "train": 5}),
    ]


def lacking() -> list[Call]:
    """A metric over items that lack its fields."""
    return [lambda m: m().compute([{"other": 1}])]


def section(required: dict[str, Any], key: str, wrong: Any) -> list[Call]:
    """A section of the configuration with an unknown key, a wrong value, and a wrong type, in a whole configuration."""
    from aligntune.core.config import build_config

    def put(value: Any) -> Any:
        name, _, inner = key.partition(".")
        return build_config({**SFT, name: {inner: value} if inner else value})

    return [lambda _: put({**required, "no_such_key": 1}), lambda _: put(wrong), lambda _: put(object())]


TRAINERS = [lambda t: t(3), lambda t: t({}), lambda t: t("no-such-file.yaml"), lambda t: t({**RL, "algo": "grpo"})]
LOADERS = [
    lambda c: c().load("no-such-file.jsonl"),
    lambda c: c().load("."),
    lambda c: c().load(""),
]
RUNNERS = [lambda f: f({}), lambda f: f({"model": "m", "tasks": [{"name": "nothing"}]}), lambda f: f("none.yaml")]
MISTAKES: dict[str, list[Call]] = {
    "create_sft_trainer": factory("sft"),
    "create_rl_trainer": factory("rl"),
    "create_trainer": [lambda f: f(3), lambda f: f({}), lambda f: f("none.yaml"), lambda f: f(SFT, expect="rl")],
    "describe": [],
    "SFTConfig": [lambda c: c(), lambda c: c(task="x", model="m", dataset="d"), lambda c: c(tsk="x")],
    "RLConfig": [lambda c: c(), lambda c: c(algo="x", model="m", datasets=[]), lambda c: c(algo=3)],
    "load_config": [
        lambda f: f("none.yaml"),
        lambda f: f(3),
        lambda f: f({}),
        lambda f: f(None),
        lambda f: f(SFT, overrides=["train.max_steps"]),
        lambda f: f(SFT, overrides=["train.max_steps=x"]),
        lambda f: f(SFT, overrides=["trian.max_steps=1"]),
        lambda f: f(SFT, keywords={"train.nothing": 1}),
        lambda f: f({**SFT, "train": {"learning_rate": NAN}}),
    ],
    "build_config": [lambda f: f({}), lambda f: f({"task": 3}), lambda f: f([])],
    "ModelConfig": section({"name_or_path": "m"}, "model", {"name_or_path": ""}),
    "DatasetConfig": section({"name": "d"}, "dataset", {"name": "d", "max_samples": 0}),
    "TrainConfig": section({}, "train", {"optimizer": "adam"}),
    "GenerationConfig": section({}, "generation", {"temperature": 0}),
    "EvaluationConfig": section({}, "evaluation", {"batch_size": -1}),
    "LoggingConfig": section({}, "logging", {"report_to": ["wandbb"]}),
    "CacheConfig": section({}, "cache", {"max_gb": "much"}),
    "PeftConfig": section({}, "model", {"name_or_path": "m", "peft": {"r": 0}}),
    "RewardConfig": [lambda c: c(type=""), lambda c: c(), lambda c: c(type="length", weight="x")],
    "BackendConfig": [
        lambda c: c("stf"),
        lambda c: c("sft", backend="tlr"),
        lambda c: c("sft", fallback="x"),
    ],
    "BackendFactory": [lambda f: f.create_trainer(3), lambda f: f.create_trainer("sft", model_name="x")],
    "validate_backend_selection": [lambda f: f("tlr"), lambda f: f("trl", "nothing")],
    "TrainerBase": TRAINERS,
    "SFTTrainerBase": TRAINERS,
    "SFTTrainerFactory": [lambda f: f.create({}), lambda f: f.create(3), lambda f: f.create(RL)],
    "TRLSFTTrainer": TRAINERS,
    "TRLDPOTrainer": TRAINERS,
    "TRLGRPOTrainer": [*TRAINERS[:3], lambda t: t(RL)],
    "UnslothSFTTrainer": TRAINERS,
    "UnslothDPOTrainer": TRAINERS,
    "UnslothGRPOTrainer": [*TRAINERS[:3], lambda t: t(RL)],
    "ClassificationTrainer": TRAINERS,
    "RewardFunctionFactory": [
        lambda f: f.create_reward("lenght"),
        lambda f: f.create_reward("length", min_word=3),
        lambda f: f.create_reward(3),
        lambda f: f.create_composite([]),
        lambda f: f.create_composite([{"type": "lenght"}]),
        lambda f: f.create_composite([{"weight": 1}]),
        lambda f: f.create_composite("length,"),
    ],
    "CompositeReward": [
        lambda c: c([]),
        lambda c: c(_rewards("length"), weights=[1.0, 2.0]),
        lambda c: c(_rewards("length"), none="sometimes"),
        lambda c: c(_rewards("length"), weights=[NAN]),
        lambda c: c(_rewards("length")).score_batch(["a"], {"x": [1, 2]}),
        lambda c: c(_rewards("math_correctness")).score_batch(["a"]),
    ],
    "RewardRegistry": [
        lambda r: r.get_reward_function("lenght"),
        lambda r: r.get_reward_function("no-file.py:f"),
        lambda r: r.get_reward_function("no.module:f"),
        lambda r: r.register_custom_reward("length", lambda text: 1.0),
        lambda r: r.register_custom_reward("mine", 3),
        lambda r: r.register_custom_reward("mine", lambda text: 1.0, range=(1, 0)),
    ],
    "reward": [lambda d: d("x", range=(2, 1))(lambda text: 1.0), lambda d: d("x", kind="odd")(lambda text: 1.0)],
    "get_reward_function": [lambda f: f("lenght"), lambda f: f(""), lambda f: f("length", max_words="x")],
    "register_custom_reward": [lambda f: f("length", lambda text: 0.0), lambda f: f("y", lambda: 0.0)],
    "build_rewards": [lambda f: f([]), lambda f: f(["lenght"]), lambda f: f([3]), lambda f: f([{"type": "length", "x": 1}])],
    "MathCorrectnessReward": [lambda c: c(nothing=1), lambda c: c().compute("7"), lambda c: c().compute("7", reference=[])],
    "LengthReward": [lambda c: c(min_words="x"), lambda c: c(least=1)],
    "RewardModelTrainer": [lambda t: t({}), lambda t: t("none.yaml"), lambda t: t({**SFT}), lambda t: t(3)],
    "RewardModelDataset": [
        lambda d: d.from_pairs([{"prompt": "a"}]),
        lambda d: d().make_pairs(),
        lambda d: d().with_noise(2.0),
        lambda d: d().split(0.5),
        lambda d: d.label([], []),
    ],
    "RewardModelValidator": [lambda v: v("./none").validate([{"prompt": "a", "chosen": "b", "rejected": "c"}])],
    "RewardModelLoader": [lambda c: c().load("./none"), lambda c: c(device="gpu").load("./none"), lambda c: c().load_reward("./none")],
    "TRLCompatibleRewardModel": [lambda c: c("./none")(["a"], ["b"]), lambda c: c("./none", batch_size=0), lambda c: c("./none", precision="x")],
    "best_of_n": [lambda f: f(["a"], [], lambda *a: 0.0)],
    "DataManager": [
        lambda c: c("prompts"),
        lambda c: c("prompt").load("none.jsonl"),
        lambda c: c("prompt").prepare(3),
        lambda c: c("prompt").prepare([]),
        lambda c: c("preference").prepare([{"prompt": "a", "chosen": "b"}]),
    ],
    "LoaderResolver": [lambda c: c().resolve("none.jsonl"), lambda c: c().resolve("./a.xyz"), lambda c: c().resolve("")],
    "HFLoader": LOADERS,
    "JSONLoader": LOADERS,
    "CSVLoader": LOADERS,
    "ParquetLoader": LOADERS,
    "DirectoryLoader": [lambda c: c().load("no-such-folder"), LOADERS[2]],
    "prepare_dataset": [lambda f: f("none.jsonl", "prompt"), lambda f: f([{"x": 1}], "preference"), lambda f: f([{"x": 1}], "y")],
    "BaseEvaluator": [lambda c: c(None, None).evaluate([{"prompt": "a"}], "nothing"), lambda c: c(None, None).evaluate([], "reward")],
    "RLEvaluator": [lambda c: c(None, None, nothing=1), lambda c: c(None, None, temperature=-1).evaluate([{"prompt": "a"}])],
    "EvalConfig": [lambda c: c(), lambda c: c(model="m", tasks=[{"name": "x"}]), lambda c: c(model=3)],
    "EvalTask": [lambda c: c(), lambda c: c(name="x", kind="reward", dataset=3)],
    "EvalRunner": RUNNERS,
    "EvalRegistry": [lambda r: r.get("nothing"), lambda r: r.register("perplexity")(int)],
    "SampleLogger": [lambda c: c(["a"], references=[]), lambda c: c([])],
    "PerplexityMetric": lacking(),
    "AccuracyMetric": lacking(),
    "RewardMarginMetric": lacking(),
    "PreferenceAccuracyMetric": lacking(),
    "MathAccuracyMetric": lacking(),
    "RougeMetric": [lambda m: m("rougeX"), lambda m: m("rougeL", "recal"), lambda m: m().compute([{"other": 1}])],
    "BleuMetric": [lambda m: m(tokenize="x"), lambda m: m().compute([{"other": 1}])],
    "ChrfMetric": [lambda m: m(word_order=-1), lambda m: m().compute([{"other": 1}])],
    "BertScoreMetric": [lambda m: m("./none", 3).compute([{"prediction": "a", "reference": "b"}])],
    "KLDivergenceMetric": [lambda m: m("k9"), *lacking()],
    "RewardAccuracyMetric": lacking(),
    "PolicyEntropyMetric": lacking(),
    "WinRateMetric": [lambda m: m("x"), *lacking()],
    "LogRatioMetric": lacking(),
    "ImplicitRewardMetric": lacking(),
    "CalibrationMetric": [lambda m: m("x"), lambda m: m(bins=0), *lacking()],
    "PassAtKMetric": [lambda m: m(0), *lacking()],
    "EntityF1Metric": [lambda m: m("x"), *lacking()],
    "LMEvalConfig": [lambda c: c(), lambda c: c(tasks=[]), lambda c: c(tasks=3)],
    "generate_texts": [
        lambda f: f(None, None, ["a"], max_new_tokens=0),
        lambda f: f(None, None, ["a"], max_new_tokens=3, temperature=-1),
        lambda f: f(None, None, ["a", [{"role": "user", "content": "x"}]], max_new_tokens=3),
    ],
    "compare": [lambda f: f("none.yaml", output_dir="out"), lambda f: f(SFT, output_dir="out"), lambda f: f(SFT, ["x"], output_dir="out")],
    "make_plan": [lambda f: f("none.yaml", output_dir="out"), lambda f: f(SFT, seeds=0, axes={"backend": ["trl", "unsloth"]}, output_dir="out")],
    "ModelLoader": [lambda c: _loader(c, "./none").load(), lambda c: _loader(c, "./none").load_tokenizer()],
    "DeviceManager": [lambda c: c("gpu"), lambda c: c("cpu").precision("fp8"), lambda c: c("cpu").precision("fp16"), lambda c: c(3)],
    "RunFolder": [lambda c: c.claim(__file__), lambda c: c.check(__file__)],
    "build_report": [lambda f: f([]), lambda f: f("none"), lambda f: f(["."])],
    "get_recipe": [lambda f: f("nothing"), lambda f: f("")],
    "copy_recipe": [lambda f: f("nothing"), lambda f: f(_recipe(), "no/such/folder/x.yaml")],
    "TRLReward": [lambda c: c(_composite("math_correctness"))(["p"], ["c"]), lambda c: c(_composite("length"))(["p"], [3])],
}  # fmt: skip
HARMLESS = {
    **dict.fromkeys(("list_backends", "list_algorithms", "list_rewards", "list_recipes"), "takes nothing"),
    "get_backend_status": "takes nothing",
    **dict.fromkeys(("TrainingState", "TrainResult", "EvalResult"), "a record that the library fills"),
    **dict.fromkeys(("dump_config", "describe"), "takes a configuration that was checked"),
    **dict.fromkeys(("RewardFunction", "BaseLoader", "Metric"), "to be built on"),
    "LMEvalRunner": "takes a checked LMEvalConfig and a loaded model",
    "render": "takes what prepare_dataset gave",
    **dict.fromkeys(
        ("AlignTuneError", "ConfigurationError", "TrainingError", "EnvironmentError", "ValidationError", "RewardError"),
        "an error itself",
    ),
}


def _rewards(name: str) -> list[Any]:
    from aligntune.rewards import build_rewards

    return list(build_rewards([name]).components)


def _composite(name: str) -> Any:
    from aligntune.rewards import build_rewards

    return build_rewards([name])


def _loader(cls: Any, path: str) -> Any:
    from aligntune.core.config import ModelConfig

    return cls(ModelConfig(name_or_path=path), training=True, seed=1)


def _recipe() -> str:
    from aligntune.recipes import list_recipes

    return str(next(iter(list_recipes())).name)


def surface() -> dict[str, str]:
    """Public callables of `surface.txt` with the first module that has them; methods belong to their class."""
    found: dict[str, str] = {}
    module = ""
    for line in (Path(__file__).parents[1] / "compat" / "surface.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith(" "):
            module = line.strip()
        elif "(" in line and "." not in line.strip().partition("(")[0]:
            found.setdefault(line.strip().partition("(")[0], module)
    return found


SURFACE = surface()


def test_every_public_name_is_tried() -> None:
    assert set(SURFACE) - set(MISTAKES) - set(HARMLESS) == set()
    assert set(MISTAKES) - set(SURFACE) == set()


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_gets_an_error_of_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = getattr(import_module(SURFACE[name]), name)
    wrong = []
    for i, call in enumerate(MISTAKES[name]):
        try:
            call(found)
        except AlignTuneError as error:
            if not error.message or not error.hint:
                wrong.append(f"mistake {i}: no hint: {error.message}")
        except Exception as error:
            wrong.append(f"mistake {i}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            wrong.append(f"mistake {i}: accepted")
    assert not wrong, "\n".join(wrong)
    assert list(tmp_path.iterdir()) == []
