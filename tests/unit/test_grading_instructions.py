"""The 25 instruction checks of IFEval, the language of a text, citations."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from aligntune import errors
from aligntune.errors import RewardError, ValidationError
from aligntune.grading import language as language_module
from aligntune.grading.instructions import CHECKS, check, follows, read_instructions, variants
from aligntune.rewards import CompositeReward, get_reward_function

CASES = [
    ("keywords:existence", {"keywords": ["tea", "Cup"]}, "A cup of TEA.", "A cup of coffee."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea, Tea", "tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "tea", "tea tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "a team", "Tea!"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Eee", "ee"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two.", "One, two."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Mr. One.", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "booster"},
        "a\n\n'Booster, b",
        "booster\n\na",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] and [date]", "[name] and (date)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. One more", "Bye. PS one more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P. P.S one more", "P.S. one more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b\n* c\n* d"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ****"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\na\nSECTION 2\nb", "SECTION one\nSECTION two"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:json_format", {}, "[1, 2]", "[" * 100_000),
    ("detectable_format:title", {}, "text\n<<a title>>", "<<>> title"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say hi. Hi!", "Sure: say hi."),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("startend:end_checker", {"end_phrase": "Peace!"}, 'Bye. peace!"', "Peace! Bye."),
    ("startend:quotation", {}, ' "quoted" ', '"'),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "THE US won", "The US won"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "The US won", "THE US won"),
]  # fmt: skip
SPOKEN = [
    (
        "language:response_language",
        {"language": "de"},
        "Das ist doch ein ganz einfacher Satz.",
        "This is plain English.",
    ),
    ("change_case:english_capital", {}, "THIS IS PLAIN ENGLISH, MY FRIEND.", "DAS IST DOCH EIN GANZ EINFACHER SATZ."),
    ("change_case:english_lowercase", {}, "this is plain english, my friend.", "this is Plain English, my friend."),
]
needs_language = pytest.mark.skipif(not find_spec("py3langid"), reason="needs the extra 'rewards'")


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_checks(name: str, arguments: dict, good: str, bad: str) -> None:
    assert follows(name, good, arguments)
    assert not follows(name, bad, arguments)
    assert not follows(name, " \n", arguments)


@needs_language
@pytest.mark.parametrize(("name", "arguments", "good", "bad"), SPOKEN)
def test_checks_of_language(name: str, arguments: dict, good: str, bad: str) -> None:
    assert follows(name, good, arguments)
    assert not follows(name, bad, arguments)


def test_every_published_check_is_tested() -> None:
    assert len(CHECKS) == 25
    assert {c[0] for c in [*CASES, *SPOKEN]} == set(CHECKS)


def test_the_published_data_can_be_checked(shared: Path) -> None:
    """Every row's ids and arguments are known."""
    rows = [json.loads(line) for line in (shared / "data/ifeval/input_data.jsonl").read_text().splitlines()]
    spoken = {s[0] for s in SPOKEN}
    assert rows
    for row in rows:
        for name, arguments in read_instructions(row["instruction_id_list"], row["kwargs"]):
            if name not in spoken:
                assert follows(name, "A plain text, of one sentence.", arguments) in (True, False)


def test_loose_forgives_an_introduction() -> None:
    text = "Sure, here it is:\nno comma"
    assert not check("punctuation:no_comma", text, {})
    assert check("punctuation:no_comma", text, {}, loose=True)
    assert check("startend:quotation", '*"a"*', {}, loose=True)
    assert len(variants("a\nb\nc")) == 8
    assert variants("*a\nb\nc") == ["*a\nb\nc", "b\nc", "*a\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="there is no instruction 'punctuation:no_coma'") as e:
        follows("punctuation:no_coma", "a")
    assert "punctuation:no_comma" in e.value.hint
    with pytest.raises(ValidationError, match="takes keywords, and gets none"):
        follows("keywords:existence", "a", {"keywords": None})
    with pytest.raises(ValidationError, match="the relation 'more' is unknown"):
        follows("length_constraints:number_words", "a", {"relation": "more", "num_words": 1})
    with pytest.raises(ValidationError, match="2 instructions and 1 entries"):
        read_instructions(["a", "b"], [{}])
    with pytest.raises(ValidationError, match="no JSON"):
        read_instructions(["a"], "{")
    assert read_instructions(["a"], '[{"b": 1}]') == [("a", {"b": 1})]
    assert read_instructions("a", None) == [("a", {})]


@pytest.mark.parametrize("text", ["[" * 10**6, "*" * 10**6, "<<" * 500_000, "\n" * 10**6, "a." * 500_000, '"' * 10**6])
def test_huge_texts(text: str) -> None:
    for name, arguments, _, _ in CASES:
        assert check(name, text, arguments) in (True, False)


def test_ifeval() -> None:
    reward = get_reward_function("ifeval")
    row = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {"language": None}]}
    assert reward.columns == {"instruction_id_list"}
    columns = {k: [v] * 4 for k, v in row.items()}
    assert reward.batch(['"a"', "a", "a, b", ""], columns) == [1, 0.5, 0, 0]
    assert reward.compute('<think>a, b</think>"a"', **row) == 1.0
    assert get_reward_function("ifeval", level="prompt").batch(['"a"', "a", "a, b", ""], columns) == [1, 0, 0, 0]
    assert get_reward_function("ifeval", mode="loose").compute('Sure,\n"a"', **row) == 1.0
    scores = CompositeReward([reward]).score_batch(["a"], {"instruction_id_list": [[]], "kwargs": [[]]})
    assert scores.total == [None]
    assert scores.stats["ifeval/no_instructions"] == 1
    with pytest.raises(RewardError, match="there is no instruction 'x'"):
        reward.batch(["a"], {"instruction_id_list": [["x"]], "kwargs": [[{}]]})


@needs_language
def test_language() -> None:
    reward = get_reward_function("language", language="de")
    german, english = "Das ist es, und das ist auch gut so. ", "This is it, and it is good that way. "
    texts = [german, english, "", "123 !?", "<think>" + english * 9 + "</think>" + german]
    assert reward.batch(texts) == [1, 0, 0, 0, 1]
    mixed = german * 60 + english * 60
    assert reward.compute(mixed) == pytest.approx(0.5, abs=0.1)
    assert get_reward_function("language", language="de", strict=True).batch([german, mixed]) == [1, 0]
    assert get_reward_function("language").batch([german, english], {"language": ["de", "en"]}) == [1, 1]
    assert get_reward_function("language", language="ja").compute("これはとても短い文章です。") == 1
    with pytest.raises(RewardError, match="knows no language 'german'"):
        get_reward_function("language", language="german").batch(["a"])


def test_language_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language_module.identifier.cache_clear()
    try:
        with pytest.raises(errors.EnvironmentError, match="py3langid, which is not installed") as e:
            get_reward_function("language", language="de").batch(["a"])
        assert e.value.hint == "run: pip install 'aligntune[rewards]'"
    finally:
        language_module.identifier.cache_clear()


SOURCES = ["The tower stands in Paris since 1889.", "It weighs ten thousand tons."]


@pytest.mark.parametrize(
    ("params", "text", "score"),
    [
        ({}, "It stands in Paris [1].", 1),
        ({}, "It stands in Paris [1] and weighs much [2].", 1),
        ({}, "It stands in Paris [1, 2].", 1),
        ({}, "It stands in Paris [1] or Rome [3].", 0.5),
        ({}, "It stands in Rome [3].", 0),
        ({}, "It stands in Paris.", 0),
        ({}, "[1] [2]", 0),
        ({}, "", 0),
        ({}, 'It says "the tower stands in Paris" [1].', 1),
        ({}, 'It says "the tower stands in Paris" [2].', 0.5),
        ({}, 'It says "the tower stands in London" [1].', 0.5),
        ({"quotes": False}, 'It says "the tower stands in London" [1].', 1),
        ({"cite_all": True}, "It stands in Paris [1].", 0.5),
        ({}, "It stands [there](http://x) since long [1].", 1),
        ({}, "[1] " * 100_000 + "and so it is", 1),
        ({}, '"[' * 500_000, 0),
    ],
)
def test_citations(params: dict, text: str, score: float) -> None:
    assert get_reward_function("citation_check", **params).compute(text, sources=SOURCES) == score


def test_citations_by_name() -> None:
    reward = get_reward_function("citation_check")
    assert reward.compute("It stands in Paris [Eiffel89].", sources={"eiffel89": SOURCES[0], "x": None}) == 1
    with pytest.raises(RewardError, match="the sources are int"):
        reward.batch(["a"], {"sources": [3]})
