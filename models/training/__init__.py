"""Training and measuring the embedded model."""

from persona_circuits.models.training.evaluate import MODEL_FOLDER, SPLITS, cases_of, measure, quality_of
from persona_circuits.models.training.evaluate_pairs import divergences
from persona_circuits.models.training.network import build_model, logits_at, next_token_logits
from persona_circuits.models.training.train import SMOKE, TrainingConfig

__all__ = [
    "MODEL_FOLDER",
    "SMOKE",
    "SPLITS",
    "TrainingConfig",
    "build_model",
    "cases_of",
    "divergences",
    "logits_at",
    "measure",
    "next_token_logits",
    "quality_of",
]
