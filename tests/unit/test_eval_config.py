"""The evaluation file: what it means, and every fault named at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aligntune.core.config.base import field_docs
from aligntune.errors import ConfigurationError
from aligntune.eval.config import EvalConfig, EvalSettings, EvalTask, load_eval_config
from aligntune.eval.registry import EvalRegistry
from aligntune.eval.tasks.base import EvalKind

GOOD = """
model: {name_or_path: runs/sft}
tasks:
  - {name: sums, kind: exact_match, dataset: test.jsonl, max_new_tokens: 26}
  - {name: style, kind: reward, dataset: {name: test.jsonl}, rewards: [answer_format], num_samples: 4, temperature: 1.0}
  - {name: text, kind: perplexity, dataset: text.jsonl, likelihood_of: completion}
  - {name: pairs, kind: preference, dataset: pairs.jsonl, reference_model: runs/base, beta: 0.2}
output_dir: runs/eval
"""


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "eval.yaml"
        path.write_text(text)
        return path

    return write


def test_a_file_and_overrides(file):
    config = load_eval_config(file(GOOD), ["tasks.0.max_samples=100", "seed=7"])
    sums, style, text, pairs = config.tasks
    assert (sums.dataset.name, sums.max_new_tokens, sums.max_samples, config.seed) == ("test.jsonl", 26, 100, 7)
    assert (style.rewards[0].type, style.num_samples, style.temperature) == ("answer_format", 4, 1.0)
    assert (text.likelihood_of, pairs.beta, pairs.reference_model) == ("completion", 0.2, "runs/base")
    assert sums.temperature == 0.0


def test_base_files_work_as_in_runs(file, tmp_path):
    (tmp_path / "other.yaml").write_text(GOOD)
    config = load_eval_config(file("base: other.yaml\nmodel: {name_or_path: runs/dpo}"))
    assert config.model.name_or_path == "runs/dpo"
    assert len(config.tasks) == 4


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "{name: a, kind: exact_mach, dataset: x}",
            r"tasks.0.kind: unknown evaluation kind 'exact_mach'; did you mean 'exact_match'",
        ),
        ("{name: a b, kind: exact_match, dataset: x}", "tasks.0.name: 'a b' names a file"),
        ("{name: a, kind: reward, dataset: x}", "tasks.0.rewards: is missing"),
        (
            "{name: a, kind: exact_match, dataset: x, rewards: [length]}",
            "tasks.0.rewards: has no effect in the kind exact_match",
        ),
        (
            "{name: a, kind: perplexity, dataset: x, temperature: 1.0}",
            "tasks.0.temperature: has no effect in the kind perplexity",
        ),
        ("{name: a, kind: exact_match, dataset: x, reference_model: y}", "tasks.0.reference_model: has no effect"),
        ("{name: a, kind: exact_match, dataset: x, num_samples: 2}", "tasks.0.num_samples: is 2 with temperature 0"),
        ("{name: a, kind: exact_match, dataset: x, top_p: 0.9}", "tasks.0.top_p: has no effect with temperature 0"),
        ("{name: a, kind: preference, dataset: x, beta: 0.5}", "tasks.0.beta: has no effect without reference_model"),
        (
            "{name: a, kind: exact_match, dataset: {name: x, max_samples: 3}, max_samples: 4}",
            "is 4, and dataset.max_samples 3",
        ),
        ("{name: a, kind: exact_match, dataset: x, max_new_token: 3}", "max_new_token: unknown key"),
        ("{name: a, kind: exact_match, dataset: x, max_new_tokens: -3}", "tasks.0.max_new_tokens"),
    ],
)
def test_faults_are_named_with_their_key(file, task, message):
    with pytest.raises(ConfigurationError) as caught:
        load_eval_config(file(f"model: {{name_or_path: m}}\ntasks: [{task}]"))
    assert __import__("re").search(message, str(caught.value)), str(caught.value)


def test_all_faults_come_in_one_message(file):
    tasks = "[{name: a, kind: reward, dataset: x}, {name: a, kind: exact_match, dataset: x, beta: 0.5}]"
    with pytest.raises(ConfigurationError) as caught:
        load_eval_config(file(f"model: {{name_or_path: m}}\ntasks: {tasks}"))
    message = str(caught.value)
    assert "3 settings are wrong" in message
    assert "tasks.0.rewards" in message
    assert "tasks.1.beta" in message
    assert "2 tasks are named 'a'" in message


def test_no_tasks_and_no_file(file, tmp_path):
    with pytest.raises(ConfigurationError, match="tasks"):
        load_eval_config(file("model: {name_or_path: m}\ntasks: []"))
    with pytest.raises(ConfigurationError, match="no such config file"):
        load_eval_config(tmp_path / "none.yaml")


def test_every_setting_is_read_by_some_kind_and_documented():
    read = frozenset().union(*(EvalRegistry.get(name).options for name in EvalRegistry.names()))
    fields = set(EvalTask.__dataclass_fields__)
    assert fields - read == {"name", "kind", "dataset", "max_samples", "batch_size", "transform"}
    assert read <= fields
    for cls in (EvalSettings, EvalTask, EvalConfig):
        assert set(cls.__dataclass_fields__) <= set(field_docs(cls))


def test_a_kind_of_ones_own_is_registered_by_name():
    @EvalRegistry.register("nothing")
    class Nothing(EvalKind):
        def items(self, rows, ids, settings, subject):
            return []

        def metrics(self, settings, items):
            return []

    try:
        assert "nothing" in EvalRegistry.names()
        assert EvalRegistry.get("nothing") is Nothing
        with pytest.raises(ConfigurationError, match="registered already"):
            EvalRegistry.register("reward")(Nothing)
    finally:
        EvalRegistry.remove("nothing")


def test_importing_the_package_and_refusing_a_file_is_light(file):
    path = file("model: {name_or_path: m}\ntasks: [{name: a, kind: rewards, dataset: x}]")
    code = f"""
import sys
import aligntune.eval
from aligntune.eval import EvalRunner, load_eval_config
from aligntune.errors import ConfigurationError
try:
    load_eval_config({str(path)!r})
except ConfigurationError:
    pass
heavy = {{"torch", "numpy", "transformers", "datasets", "trl", "pyarrow", "math_verify"}} & set(sys.modules)
assert not heavy, heavy
assert all(hasattr(aligntune.eval, name) for name in aligntune.eval.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_key_points_at_the_page_of_evaluation_files(file):
    with pytest.raises(ConfigurationError) as caught:
        load_eval_config(file("model: {name_or_path: m}\ntasks: []\n"))
    assert "config schema" not in caught.value.hint
    assert "docs/evaluation.md" in caught.value.hint
