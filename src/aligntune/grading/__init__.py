"""Graders shared by rewards and evaluation: finding the final answer of a text, and deciding whether it is right.

    from aligntune.grading.extract import final_answer
    from aligntune.grading.math import math_equal
    math_equal("1/2", final_answer("... so the answer is 0.5"))       # True

Nothing here imports sympy or Math-Verify: they run in a process of their own.
"""
