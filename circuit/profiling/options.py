"""Choices of what is measured of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Alignment, Option, PlainNumbers, Seed, Steps, check_least

__all__ = ["BenchOptions", "InspectOptions"]


@dataclass(frozen=True)
class BenchOptions(PlainNumbers):
    """What ``bench`` measures.

    ``edges`` is the size of the random circuit, ``acdc_edges`` how many edges ACDC tries
    (0: none), ``share`` its threshold as a share of |m(full) - m(empty)|.
    """

    n_pairs: Annotated[int, Option("Pairs of one length, in one batch.")] = 8
    rounds: Annotated[int, Option("Timed rounds of each step.")] = 3
    steps: Steps = 5
    edges: Annotated[int, Option("Edges of the random circuit.")] = 200
    acdc_edges: Annotated[int, Option("Edges that ACDC tries, spread over the graph; 0: none.")] = 96
    candidates: Annotated[
        int | None, Option("Edges that ACDC tries per pass. (default: as many as share one, at most 8; GPU: 128)")
    ] = None
    share: Annotated[float, Option("ACDC's threshold as a share of |m(full) - m(empty)|.")] = 0.003
    seed: Seed = 0

    def checked(self) -> BenchOptions:
        """These options.

        Raises:
            OptionError: a number is too small.
        """
        check_least(self, n_pairs=1, rounds=1, steps=1, edges=1, candidates=1)
        if self.acdc_edges < 0 or not self.share > 0:
            raise OptionError(
                f"--acdc-edges must not be negative and --share above zero, got {self.acdc_edges} and {self.share}"
            )
        return self


@dataclass(frozen=True)
class InspectOptions(PlainNumbers):
    """What ``inspect_model`` assumes of a run."""

    align: Alignment = "equal"
    config_only: Annotated[
        bool | None, Option("Read the configuration and no weights; the check is left out. (default: with --pairs)")
    ] = None
    tokens: Annotated[int, Option("Tokens of a prompt. (with --pairs: the longest)")] = 64
    prompts: Annotated[int, Option("Prompt pairs, both directions. (with --pairs: the file's)")] = 400
    device: Annotated[str, Option("GPU: RTX 4090, A100 80GB, H100 80GB or H200.", name="--on")] = "H200"
