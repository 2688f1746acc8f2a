"""Options that commands share: their types, names and help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from persona_circuits.circuit.choices import DTYPE_NAMES
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Option

__all__ = [
    "LATEST",
    "BarOption",
    "CircuitArgument",
    "Drawn",
    "DrawnOption",
    "ExportFormat",
    "JsonOption",
    "Loading",
    "ModelOption",
    "OutOption",
    "PairsOption",
    "Source",
]

ExportFormat = Literal[
    "eap-ig", "graphml", "dot", "nodes", "auto-circuit", "auto-circuit-pairs", "mib", "mib-nodes", "mib-circuits"
]
MODEL = "Folder, GGUF file, name of a model that get fetched, or hub name. (default: the model that is shipped)"
PAIRS = "Prompt pairs: JSON Lines, or auto-circuit's JSON. (default: the shipped model's)"
ModelOption = Annotated[str | None, typer.Option("--model", help=MODEL)]
PairsOption = Annotated[Path | None, typer.Option("--pairs", help=PAIRS)]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
BarOption = Annotated[
    float | None, typer.Option("--min-faithfulness", help="Exit with 1 if faithfulness is below this bar.")
]
EDGES = "Edges to draw at most. (default: as many as can be followed)"
DrawnOption = Annotated[int | None, typer.Option("--strongest", min=1, help=EDGES)]
Drawn = Annotated[int | None, Option(EDGES, min=1)]
"""The same as a field."""
CircuitArgument = Annotated[Path, typer.Argument(help="circuit.json, its folder, or EAP-IG's JSON.")]
LATEST = Path("runs/discover")


@dataclass(frozen=True)
class Source:
    """The model and the pairs that a command is about; both are the shipped ones where neither is given."""

    model: Annotated[str | None, Option(MODEL)] = None
    pairs: Annotated[Path | None, Option(PAIRS)] = None

    @property
    def shipped(self) -> bool:
        """Whether the pairs are the shipped ones, whose controls and questions are known, too."""
        return self.pairs is None

    def name(self) -> str:
        """The model's name.

        Raises:
            OptionError: a model is given without pairs.
        """
        from persona_circuits.circuit.task import MODEL as SHIPPED

        if self.model is not None and self.pairs is None:
            raise OptionError("--model needs --pairs: the pairs that are shipped are written for the shipped model")
        return SHIPPED if self.model is None else self.model


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, and whether pairs that do not fit it are left out."""

    device: Annotated[str, Option("auto, cpu, cuda, cuda:1, mps; balanced: over all GPUs.")] = "auto"
    dtype: Annotated[
        str,
        Option(
            "Of weights and computation; bfloat16-weights keeps weights in half the memory, computes in float32.",
            choices=DTYPE_NAMES,
        ),
    ] = "float32"
    max_memory: Annotated[
        str | None, Option("Memory limit, e.g. 8GiB: fewer prompts and circuits at a time, so that all stays below it.")
    ] = None
    revision: Annotated[str | None, Option("Branch, tag or commit on the hub.")] = None
    fitting: Annotated[
        bool, Option("Continue with the pairs that fit the model; the others are left out and counted.")
    ] = False
