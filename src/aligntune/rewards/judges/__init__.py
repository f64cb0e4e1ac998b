"""The one judge interface: a language model that answers questions about texts, and the rubrics that it is asked by.

    judge = make_judge(JudgeConfig(url="http://localhost:8000/v1", model="Qwen/Qwen3-32B"))
    verdicts = grade(judge, load_rubric("helpfulness"), [{"prompt": "2+2?", "answer": "4"}])
    verdicts[0].score, judge.usage.cost         # 1.0, 0.0003

Rewards, the win rate of evaluation and the making of preference pairs all ask through `Judge.ask`. Nothing heavy is
imported. It does not judge by itself: without an endpoint or a model there is no verdict, never a middle value.
"""

from aligntune.rewards.judges.base import FunctionJudge, Judge, Usage, make_judge
from aligntune.rewards.judges.pairwise import Comparison, compare
from aligntune.rewards.judges.rubric import Rubric, Verdict, grade, load_rubric, rubric_names

__all__ = [
    "Comparison",
    "FunctionJudge",
    "Judge",
    "Rubric",
    "Usage",
    "Verdict",
    "compare",
    "grade",
    "load_rubric",
    "make_judge",
    "rubric_names",
]
