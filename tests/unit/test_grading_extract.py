"""Finding the final answer: the order of the marks, and every hedge that must be refused."""

from __future__ import annotations

import pytest

from aligntune.grading.extract import final_answer, find_answer, is_hedge, strip_reasoning


@pytest.mark.parametrize(
    ("text", "answer", "source"),
    [
        (r"so \boxed{12}.", "12", "box"),
        (r"so \boxed{\frac{1}{2}} and #### \frac{1}{2}", r"\frac{1}{2}", "box"),
        (r"\boxed{12} is 12, again \boxed{12.0}", "12", "box"),
        ("6 * 12 = <<6*12=72>>72\n#### 72", "72", "hash"),
        ("#### Step 1: add\n2 + 2 = 4\n#### 4 apples", "4 apples", "hash"),
        ("#### Working\nThe answer is 5.", "5", "prose"),
        ("#### yes", "yes", "hash"),
        ("<answer> 7 </answer>", "7", "tag"),
        ("<answer>The answer is 7.</answer>", "7", "tag"),
        (r"<answer>We get \boxed{7}.</answer>", "7", "box"),
        ("The answer is 3. No: the answer is **4**.", "4", "prose"),
        ("Answer: $1,234.50 because 1+1 is 2", "$1,234.50", "prose"),
        ("It costs 18 dollars.", "18", "number"),
        ("A: 1,200", "1,200", "number"),
        ("is it 7/12", "7/12", "number"),
        ("the change is -3 degrees", "-3", "number"),
        ("40 + 2 = 42\nA: 42", "42", "number"),
        ("12 or 13? It must be 13. So we have 14", "14", "number"),
    ],
)
def test_found(text: str, answer: str, source: str) -> None:
    found = find_answer(text)
    assert (found.answer, found.source, found.refused) == (answer, source, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (r"\boxed{12} \boxed{13}", "differ"),
        (r"\boxed{12} but #### 13", "differ"),
        ("#### 12\n#### 13", "differ"),
        ("<answer>12</answer><answer>13</answer>", "differ"),
        (r"\boxed{12 \text{ or thirteen}}", "hedge"),
        (r"\boxed{x=13=12}", "hedge"),
        (r"\boxed{12=13}", "hedge"),
        (r"\boxed{12, 13}", "hedge"),
        (r"\boxed{\{11,12,13\}}", "hedge"),
        (r"\boxed{\pm 12}", "hedge"),
        (r"\boxed{12 \quad 13}", "hedge"),
        (r"\boxed{12 \to 13}", "hedge"),
        ("#### 12 or 13", "hedge"),
        ("#### 12; 13", "hedge"),
        ("#### 12 13", "hedge"),
        ("#### 12..13", "hedge"),
        ("#### maybe 12, else 13", "hedge"),
        ("#### 12 not 13", "hedge"),
        ("The answer is either 12 or 13.", "hedge"),
        ("It is 12 or 13", "hedge"),
        ("It is 12 dollars or perhaps 13", "hedge"),
        ("somewhere between 12 and 13", "hedge"),
        ("in 12-13", "hedge"),
        ("#### " + "1" * 301, "long"),
        (r"\boxed{" + "1" * 301 + "}", "long"),
        (r"\boxed{12}" * 65, "marks"),
    ],
)
def test_refused(text: str, why: str) -> None:
    found = find_answer(text)
    assert (found.answer, found.refused) == (None, why)


@pytest.mark.parametrize(
    "text", ["", "no numbers here", "####", r"\boxed{}", "<think>12", "<think>a</think>b<think>12", "\0"]
)
def test_nothing(text: str) -> None:
    assert find_answer(text) == find_answer("")
    assert final_answer(text) is None


def test_only_the_part_after_the_thought_counts() -> None:
    assert final_answer(r"<think>\boxed{12}</think>I do not know") is None
    assert final_answer("12 or 13, hm</think>#### 13") == "13"
    assert strip_reasoning("<think>a</think>b</think>c") == "c"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("(1, 2)", "(1, 2)"), ("1, 2", "2, 1"), ("x = 2 or x = 3", "x=3 or x=2"), (r"\pm 3", r"\pm 3"), ("2x+3", "3+2x"),
     ("a=b=c", "c=b=a"), ("(-\\infty, 5)", "x<5"), ("2 1/2", "2.5"), ("12 345", "12345"), ("3 + 4 = 7", "7")],
)  # fmt: skip
def test_the_form_of_the_gold_answer_is_no_hedge(answer: str, gold: str) -> None:
    assert not is_hedge(answer, gold)


def test_nested_and_open_boxes() -> None:
    assert final_answer(r"\boxed{\text{a} \boxed{b}}") == r"\text{a} \boxed{b}"
    assert find_answer(r"\boxed{12").answer == "12"  # cut off by the length limit; the number still stands
