"""What distillation (`algorithms.gkd`) adds to TRL's SFTTrainer: a teacher, sampled answers, and the divergence.

    trainer_class = distilling(trl.SFTTrainer)     # or Unsloth's
    hf.attach(params, config, teacher)

The batches of one optimizer step are answered anew (`get_batch_samples`) before their tokens are counted, so that the
loss is the mean over the tokens that are trained on, however they are split into micro-batches or over processes.

Source: arXiv:2306.13649, algorithm 1; `Trainer.get_batch_samples` and `compute_loss` of Transformers 5.17. It keeps the
logits of whole batches in memory, the student's and the teacher's.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

from aligntune.core.held_out import Values
from aligntune.errors import TrainingError, ValidationError
from aligntune.eval.estimates import ratio_of

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


def divergence(student_NV: Any, teacher_NV: Any, beta: float, temperature: float = 1.0) -> Any:
    """The generalised Jensen-Shannon divergence of each token, in nats, at least in fp32.

    Args:
        student_NV: the student's logits, with gradient.
        teacher_NV: the teacher's.
        beta: 0 gives KL(teacher || student), 1 gives KL(student || teacher).
        temperature: divides both.
    """
    import math

    import torch

    dtype = torch.promote_types(student_NV.dtype, torch.float32)
    q = (student_NV.to(dtype) / temperature).log_softmax(-1)
    p = (teacher_NV.to(dtype) / temperature).log_softmax(-1)
    if beta == 0:
        return (p.exp() * (p - q)).sum(-1)
    if beta == 1:
        return (q.exp() * (q - p)).sum(-1)
    m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * (q.exp() * (q - m)).sum(-1)


def common(student: Any, teacher: Any) -> tuple[Any, Any]:
    """Logits over the tokens that both have: embeddings padded to a round number differ behind the vocabulary."""
    width = min(student.shape[-1], teacher.shape[-1])
    return student[..., :width], teacher[..., :width]


def answer_room(config: Any, prompt: int) -> int:
    """Most tokens of an answer to a prompt of `prompt` tokens."""
    return int(min(config.generation.max_completion_length, config.model.max_seq_length - prompt))


def check_teacher(trainer: Trainer) -> None:
    """Refuse a teacher that cannot be found, or whose tokens are others than the student's.

    Raises:
        ConfigurationError: no such folder, or weights that are not in safetensors files.
        ValidationError: names one token that the two number differently.
    """
    theirs = _loader(trainer).load_tokenizer().get_vocab()
    ours = trainer.tokenizer.get_vocab()
    if theirs == ours:
        return
    token = min((t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)), key=str)
    raise ValidationError(
        f"the teacher {trainer.config.algorithm.teacher} does not share the student's vocabulary: token {token!r} is "  # type: ignore[attr-defined]
        f"{theirs.get(token, 'not there')} in it and {ours.get(token, 'not there')} in the student",
        hint="set algo.teacher to a model of the student's family",
        context={"ours": len(ours), "theirs": len(theirs)},
    )


def load_teacher(trainer: Trainer) -> Any:
    """The teacher, frozen, in evaluation mode, on the run's device."""
    teacher = _loader(trainer).load().model.requires_grad_(False)
    most = max(trainer.tokenizer.get_vocab().values())
    widths = [m.get_output_embeddings().weight.shape[0] for m in (teacher, trainer.model)]
    if min(widths) <= most:
        raise ValidationError(
            f"the teacher's {widths[0]} and the student's {widths[1]} outputs do not cover the {most + 1} tokens",
            hint="set algo.teacher to a model of the student's family",
        )
    return teacher


def _loader(trainer: Trainer) -> Any:
    from aligntune.utils.model_loader import ModelLoader
    from aligntune.utils.model_source import faults_of

    params: Any = trainer.config.algorithm
    loader = ModelLoader(params.teacher_config(trainer.config), training=False, seed=trainer.config.train.seed)
    with faults_of("algo.teacher", "algo.teacher_revision"):
        loader.source  # noqa: B018 - found here, so that its errors name the right key
    return loader


@cache
def distilling(base: type) -> type:
    """`base`, which is SFTTrainer or what a backend has put in its place, with the loss of distillation."""
    import torch

    class Distilling(base):  # type: ignore[misc, valid-type]
        """See this module."""

        reached = False
        origin: Any = None  # the checkpoint that the run goes on from
        drawn = False  # whether its random state was taken back

        def attach(self, params: Any, config: Any, teacher: Any) -> None:
            """Connect teacher and settings; called once, after construction."""
            self.params, self.config, self.teacher = params, config, teacher
            self.model_accepts_loss_kwargs = True  # the loss is divided here, by the tokens of the whole step

        def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.origin, self.drawn = resume_from_checkpoint, False
            return super().train(resume_from_checkpoint, *args, **kwargs)

        def _load_rng_state(self, checkpoint: Any) -> None:
            if not self.drawn:  # the library asks after the first batches are answered, which draws already
                super()._load_rng_state(checkpoint)
            self.drawn = True

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            self._load_rng_state(self.origin)
            batches = [self._answered(batch) for batch in batches]
            return batches, self._get_num_items_in_batch(batches, device)

        def _answered(self, batch: dict[str, Any]) -> dict[str, Any]:
            """The batch with the answers that this step learns from."""
            on_policy = random.random() < self.params.lmbda  # its state is part of the checkpoint
            self._metrics["train"]["on_policy"].append(float(on_policy))
            if on_policy:
                return self._sampled(batch, self.accelerator.unwrap_model(self.model))
            return self._sampled(batch, self.teacher) if self.params.seq_kd else batch

        def _sampled(self, batch: dict[str, Any], model: Any) -> dict[str, Any]:
            from aligntune.eval.generation import evaluating, generate_ids, sampling_options, sampling_settings

            tokenizer = self.processing_class
            first = (batch["labels"] != -100).int().argmax(1).tolist()
            prompts = [row[:n].tolist() for row, n in zip(batch["input_ids"], first, strict=True)]
            settings = sampling_settings(model, tokenizer, **sampling_options(self.config.generation))
            room = answer_room(self.config, max(first))
            with evaluating(model):
                answers = generate_ids(model, prompts, settings, room)
            self._metrics["train"]["completions/mean_length"].append(sum(map(len, answers)) / len(answers))
            rows = [p + a for p, a in zip(prompts, answers, strict=True)]
            width = max(map(len, rows))
            device = batch["input_ids"].device

            def padded(values: list[list[int]], fill: int) -> Any:
                return torch.tensor([v + [fill] * (width - len(v)) for v in values], device=device)

            return {
                "input_ids": padded(rows, tokenizer.pad_token_id),
                "attention_mask": padded([[1] * len(r) for r in rows], 0),
                "labels": padded([[-100] * len(p) + a for p, a in zip(prompts, answers, strict=True)], -100),
            }

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            self.reached = True
            given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
            outputs = model(**given)
            with torch.no_grad():
                teacher = self.teacher(**given).logits
            if not isinstance(outputs.logits, torch.Tensor):
                raise TrainingError(
                    "the training library returned no logits, which distillation compares",
                    hint="set `backend: trl`, or UNSLOTH_RETURN_LOGITS=1",
                )
            mask = inputs["labels"][:, 1:] != -100
            student, teacher = common(outputs.logits[:, :-1][mask], teacher[:, :-1][mask])
            values_N = divergence(student, teacher, self.params.beta, self.params.temperature)
            if num_items_in_batch is None:
                loss = values_N.sum() / mask.sum().clamp(min=1)
            else:
                loss = values_N.sum() / num_items_in_batch
                if self.args.average_tokens_across_devices:  # the count is over all processes, the gradient's mean too
                    loss = loss * self.accelerator.num_processes
            self._note(inputs)
            return (loss, outputs) if return_outputs else loss

        def _note(self, inputs: Any) -> None:
            if self.model.training:
                tokens = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
                self._total_train_tokens += tokens
                self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            output = super().training_step(*args, **kwargs)
            if not self.reached:
                raise TrainingError(
                    f"{base.__module__}.{base.__qualname__} never called compute_loss, so it does not distil",
                    hint="this training library ignores the algorithm; install the versions of constraints.txt",
                )
            return output

    Distilling.__name__, Distilling.__qualname__ = base.__name__, base.__qualname__
    return Distilling


def measure(trainer: Trainer, rows: Any) -> Values:
    """Held-out values: the divergence from the teacher on the data's answers, per token, and what SFT measures."""
    import torch

    from aligntune.core.evaluation import likelihood
    from aligntune.eval.generation import evaluating
    from aligntune.eval.likelihood import encode_row, length_limit

    params: Any = trainer.config.algorithm
    teacher = getattr(trainer._hf, "teacher", None) or load_teacher(trainer)
    model, pad = trainer.model, trainer.tokenizer.pad_token_id
    limit = length_limit(model, trainer.config.model.max_seq_length)
    encoded = [encode_row(trainer.tokenizer, row) for row in rows]
    totals: list[float] = []
    tokens: list[float] = []
    size = trainer.config.evaluation.batch_size
    device = next(model.parameters()).device
    with evaluating(model):
        for start in range(0, len(encoded), size):
            part = [(e.ids[:limit], e.counted[:limit]) for e in encoded[start : start + size]]
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in part], device=device)
            seen = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in part], device=device)
            mask = torch.tensor([list(c) + [False] * (width - len(c)) for _, c in part], device=device)[:, 1:].bool()
            given = {"input_ids": ids, "attention_mask": seen, "use_cache": False}
            pair = common(model(**given).logits[:, :-1][mask], teacher(**given).logits[:, :-1][mask])
            each = divergence(*pair, params.beta, params.temperature).double().cpu()
            counts = mask.sum(dim=1).tolist()
            totals += [float(row.sum()) for row in each.split(counts)]
            tokens += map(float, counts)
    return {**likelihood(trainer, rows), "divergence": ratio_of(totals, tokens)}
