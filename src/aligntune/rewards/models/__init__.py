"""Scorers by a local model, for rewards and for whatever else needs a number from one.

    TextClassifier("models/toxicity").probabilities(["You fool."])      # [{'neutral': 0.1, 'toxic': 0.9}]
    NLI("models/nli").probabilities([("It rains.", "It is wet.")])      # [(entailment, neutral, contradiction)]
    Embedder("models/embedding").embed(["one", "two"])                  # float32 [2, d], rows of length 1
    ReferenceLM("models/gpt2").log_likelihood(["It rains."])            # [(nats, tokens)]

Weights are read at the first use, from safetensors files only. It trains nothing, and holds no rewards.
"""

from aligntune.rewards.models.base import LocalModel
from aligntune.rewards.models.classifier import NLI, OneLogit, TextClassifier
from aligntune.rewards.models.embedder import Embedder
from aligntune.rewards.models.language import ReferenceLM

__all__ = ["NLI", "Embedder", "LocalModel", "OneLogit", "ReferenceLM", "TextClassifier"]
