"""A limit on memory: how many prompts and circuits are taken at a time, so that the predicted peak stays below it.

The prediction is the arithmetic of ``circuit.cost.passes`` and the weights as they lie in memory. Half of what
the weights leave is for the runs of a batch's prompts, half for the circuits that are tried on them.

On a CPU the limit is the whole process's, so that Python and its libraries are counted too, by a constant: what they
take is a little different in every run, and the number of prompts at a time must not be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from persona_circuits.circuit.cost.sizes import Architecture, circuit_bytes, run_bytes, state_bytes
from persona_circuits.circuit.errors import ModelError, OptionError

__all__ = ["OTHER", "PLAIN", "PROCESS_BYTES", "Budget", "parse_bytes", "shown_bytes"]

UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
PROCESS_BYTES = 600 << 20
"""Python, torch and the host libraries when a model has been loaded, the weights left out: 530 MiB were measured."""
PLAIN, OTHER = 2, 6
"""Most plain runs of a pair in memory at a time: where cut edges carry the corrupt run's values, and otherwise."""


@dataclass(frozen=True)
class Budget:
    """What a model may take: ``limit`` bytes of which ``fixed`` are its weights; ``dtype`` as in ``model.DTYPES``.

    ``process`` bytes of ``fixed`` belong to the process itself, not to the weights.

    Raises:
        ModelError: the weights alone exceed the limit.
    """

    limit: int
    fixed: int
    arch: Architecture
    dtype: str
    process: int = 0

    def __post_init__(self) -> None:
        if self.room <= 0:
            short = "" if self.dtype.startswith("bfloat16") else "--dtype bfloat16-weights, "
            more = f", Python and its libraries {shown_bytes(self.process)}" if self.process else ""
            raise ModelError(
                f"the weights of {self.arch.name} take {shown_bytes(self.fixed - self.process)} in {self.dtype}"
                f"{more}, and --max-memory allows {shown_bytes(self.limit)}; use {short}a higher limit, or a smaller "
                "model"
            )

    @property
    def room(self) -> int:
        """Bytes beside the weights."""
        return self.limit - self.fixed

    def score_rows(self, tokens: int, *, steps: int | None = None, plain: bool = True) -> int:
        """Prompts of so many tokens whose edges EAP, or EAP-IG, scores at a time.

        Raises:
            ModelError: not even one fits.
        """
        more = 0 if plain else run_bytes(self.arch, tokens, self.dtype, runs=OTHER - PLAIN)
        return self._rows(state_bytes(self.arch, tokens, self.dtype, steps=steps) + more, tokens)

    def circuit_rows(self, tokens: int, *, plain: bool = True) -> int:
        """Prompts whose runs are in memory while at least one circuit is measured on them.

        Raises:
            ModelError: not even one fits.
        """
        return self._rows(2 * self._row_bytes(tokens, plain), tokens)

    def circuits(self, tokens: int, rows: int) -> int:
        """Circuits that share a pass over so many prompts; at least one."""
        return max(1, self.room // 2 // (rows * circuit_bytes(self.arch, tokens, self.dtype)))

    def check_held(self, lengths: list[int], *, plain: bool = True) -> None:
        """Check that the runs of all prompts of these lengths fit into memory together, as a search over edges needs.

        Raises:
            ModelError: they cannot.
        """
        runs = PLAIN if plain else OTHER
        needed = 2 * sum(run_bytes(self.arch, tokens, self.dtype, runs=runs) for tokens in lengths)
        if needed > self.room:
            raise ModelError(
                f"ACDC keeps the runs of all {len(lengths)} prompts: about {shown_bytes(needed + self.fixed)} with the "
                f"weights, and --max-memory allows {shown_bytes(self.limit)}; use fewer pairs (--where), "
                "--prune threshold, or a higher limit"
            )

    def _row_bytes(self, tokens: int, plain: bool) -> int:
        runs = run_bytes(self.arch, tokens, self.dtype, runs=PLAIN if plain else OTHER)
        return max(runs, circuit_bytes(self.arch, tokens, self.dtype))

    def _rows(self, each: int, tokens: int) -> int:
        if each > self.room:
            raise ModelError(
                f"a single prompt of {tokens} tokens takes about {shown_bytes(self.fixed + each)} with the weights of "
                f"{self.arch.name}, and --max-memory allows {shown_bytes(self.limit)}; use a higher limit or shorter "
                "prompts"
            )
        return self.room // each


def parse_bytes(text: str) -> int:
    """``8GiB``, ``500MB`` or a number of bytes.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): size for name, size in UNITS.items()}
    if match is None or match[2].lower() not in units or float(match[1]) <= 0:
        raise OptionError(f"--max-memory {text!r} is no size; write one such as 8GiB or 500MB")
    return int(float(match[1]) * units[match[2].lower()])


def shown_bytes(n: int) -> str:
    """A size for people, in MiB or GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
