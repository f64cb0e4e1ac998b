"""Distillation: generalised knowledge distillation, on policy and offline (Agarwal et al. 2023, arXiv:2306.13649).

The student q (the model that is trained) learns the teacher's distribution p of the next token at every token of an
answer. Loss per token, over the whole vocabulary (section 3.1 of the paper):

    JSD_beta(p, q) = beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

with KL(p || q) at beta 0 and KL(q || p) at beta 1, its limits when divided by beta (1 - beta). Mean over the tokens of
an optimizer step. Where the answers come from is drawn for each batch: with probability `lmbda` the student samples
them (on policy), else they are the data's, or the teacher's own samples with `seq_kd` (algorithm 1).

    algo: {name: gkd, teacher: Qwen/Qwen2.5-7B-Instruct, beta: 0.5, lmbda: 0.5}
    algo: {name: gkd, teacher: out/teacher, beta: 0.0, lmbda: 0.0}       # offline; `distillation` is this lmbda's name

Data: the rows of supervised fine-tuning. Teacher and student must share the vocabulary; the teacher's samples and
logits are computed here, and nothing is read from a server.

It stands on TRL's SFTTrainer and owns the loss: the experimental GKDTrainer of TRL 1.14.2 divides the loss of sampled
answers by the number of tokens in the data's answers, and its temperature does not reach the divergence.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pydantic import PositiveFloat

from aligntune.algorithms.base import AlgorithmParams, Schema, algorithm
from aligntune.algorithms.sft.instruction_following import InstructionFollowing
from aligntune.core.config.sections import Fraction
from aligntune.registry import import_attribute


@algorithm("gkd", trainer="trl:SFTTrainer", args="trl:SFTConfig", data=Schema.PROMPT_COMPLETION)
class GKD(AlgorithmParams):
    """Learn a teacher's distribution, on the student's own answers, the data's, or the teacher's."""

    learning_rate: ClassVar[float] = 2e-5  # TRL's GKDConfig
    evaluator: ClassVar[str] = "aligntune.core.rl.distill:measure"
    train_on: ClassVar[str] = "completion"
    fixed: ClassVar[dict[str, Any]] = {"loss_type": "nll", "packing": False}
    inert: ClassVar[dict[str, str]] = {
        "rewards": "distillation learns from a teacher, not from reward functions",
        "logging.rollouts": "distillation has no rewards to store",
        "generation.max_prompt_length": "`model.max_seq_length` limits prompt and answer together",
    }

    teacher: str | None = None
    """Folder or hub id of the teacher, which must be given; its vocabulary is the student's."""
    teacher_revision: str | None = None
    """Branch, tag or commit of the teacher's hub repository; None is the main branch."""
    beta: Fraction = 0.5
    """Which divergence: 0 forward KL, 0.5 Jensen-Shannon, 1 reverse KL (the paper studies 0.1, 0.5, 0.9; TRL: 0.5)."""
    lmbda: Fraction = 0.5
    """Share of batches that the student answers itself: 0 is offline, 1 on policy (the paper's lambda; TRL: 0.5)."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both in the divergence (Hinton et al. 2015, arXiv:1503.02531; the paper: 1). Sampling has
    its own, `generation.temperature`."""
    seq_kd: bool = False
    """Batches that the student does not answer are answered by the teacher, not by the data (sequence-level
    distillation, Kim and Rush 2016, arXiv:1606.07947; TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return InstructionFollowing().arguments(config)

    def trainer_type(self, base: type) -> type:
        return import_attribute("aligntune.core.rl.distill:distilling")(base)  # type: ignore[no-any-return]

    def teacher_config(self, config: Any) -> Any:
        """The section `model` of the teacher, run as the student is but whole and not quantised."""
        named = {"name_or_path": self.teacher, "revision": self.teacher_revision, "chat_template": None}
        return dataclasses.replace(config.model, **named, peft=None, quantization=None)

    def check(self, trainer: Any) -> None:
        import_attribute("aligntune.core.rl.distill:check_teacher")(trainer)

    def attach(self, hf: Any, trainer: Any) -> None:
        hf.attach(self, trainer.config, import_attribute("aligntune.core.rl.distill:load_teacher")(trainer))

    def inert_keys(self, config: Any) -> dict[str, str]:
        from aligntune.algorithms.group import vllm_arguments

        keys = super().inert_keys(config)
        reason = "the answers of distillation are sampled with Transformers"
        keys = {**keys, **{f"generation.{k}": reason for k in vllm_arguments(config.generation)}}
        if self.lmbda == 0 and not self.seq_kd:
            keys["generation"] = "`algo.lmbda` is 0, so all answers are the data's"
        if self.lmbda == 1:
            keys["algo.seq_kd"] = "`algo.lmbda` is 1, so the student gives all answers"
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if not self.teacher:
            found.append(("algo.teacher", "is missing; name the folder or hub id of the teacher"))
        return found
