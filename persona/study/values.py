"""What a study and its stages hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from persona_circuits.persona.study.context import StudyFiles
from persona_circuits.persona.study.numbers import Numbers
from persona_circuits.persona.study.options import StudyOptions
from persona_circuits.persona.study.predictions import Outcome, Plan

__all__ = ["StageResult", "Study"]

FORMAT = "persona-circuits/study"


@dataclass(frozen=True)
class StageResult:
    """What came of a stage; ``reused``: it was finished before, with the same inputs. ``extras`` are for the report."""

    name: str
    numbers: Numbers
    notes: tuple[str, ...]
    extras: Mapping[str, Any]
    reused: bool


@dataclass(frozen=True)
class Study:
    """All of it: outcomes by plan, in their order; ``missing`` are stages that were neither run nor finished."""

    model: str
    fingerprint: str
    files: StudyFiles
    options: StudyOptions
    stages: tuple[StageResult, ...]
    missing: tuple[str, ...]
    plans: tuple[tuple[Plan, tuple[Outcome, ...]], ...]

    @property
    def numbers(self) -> Numbers:
        """The numbers of all stages, in their order."""
        return {name: number for stage in self.stages for name, number in stage.numbers.items()}

    def record(self) -> dict[str, Any]:
        """What ``numbers.json`` holds."""
        return {
            "format": FORMAT,
            "version": 1,
            "model": {"name": self.model, "fingerprint": self.fingerprint},
            "files": self.files.as_dict(),
            "options": asdict(self.options),
            "missing_stages": list(self.missing),
            "notes": {stage.name: list(stage.notes) for stage in self.stages if stage.notes},
            "numbers": {name: number.as_dict() for name, number in self.numbers.items()},
        }
