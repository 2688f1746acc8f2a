"""Choices of a patching study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.choices import ABLATIONS
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import (
    Alignment,
    BatchSize,
    Option,
    PlainNumbers,
    Seed,
    check_choices,
    check_least,
    names_of,
)

__all__ = ["KINDS", "MODES", "PatchOptions"]

KINDS = ("stream", "attn", "mlps", "heads", "head-parts")
MODES = ("spans", "named", "positions")


def _kinds_of(text: str) -> tuple[str, ...]:
    return () if text.strip() == "none" else names_of(text)


@dataclass(frozen=True)
class PatchOptions(PlainNumbers):
    """What is patched. ``senders`` empty: all that reach a receiver; ``receivers`` empty: no paths.

    ``ablate`` names heads, ``ablate_top`` takes the first so many movers instead. ``negligible`` is the
    share of D up to which a head is no mover, ``alpha`` the false discovery rate.
    """

    at: Annotated[
        tuple[str, ...],
        Option("What is patched, of stream, attn, mlps, heads, head-parts; or none.", given=str, read=_kinds_of),
    ] = ("stream", "attn", "mlps", "heads")
    parts: Annotated[
        str, Option("Parts of the prompt: the file's, named single tokens, or every position.", choices=MODES)
    ] = "spans"
    senders: Annotated[
        tuple[str, ...],
        Option(
            "Nodes that paths start at, such as a5.h2,m3. (default: all that reach --to)",
            name="--from",
            given=str,
            read=names_of,
        ),
    ] = ()
    receivers: Annotated[
        tuple[str, ...],
        Option(
            "Where direct paths end, such as 'a9.h10<v>,m4,logits'; a head is its q, k, v.",
            name="--to",
            given=str,
            read=names_of,
        ),
    ] = ()
    ablate: Annotated[tuple[str, ...], Option("Heads to ablate, e.g. a9.h10,a10.h5.", given=str, read=names_of)] = ()
    ablate_top: Annotated[int | None, Option("Ablate this many persona movers instead, the strongest first.")] = None
    ablation: Annotated[str, Option("What ablated heads write.", choices=ABLATIONS)] = "corrupt"
    n_random: Annotated[int, Option("Random sets of as many heads in the same layers to compare with.")] = 100
    align: Alignment = "equal"
    negligible: Annotated[float, Option("Share of D that a head must exceed to be a mover.")] = 0.01
    alpha: float = 0.05
    batch_size: BatchSize = 32
    seed: Seed = 0

    def checked(self) -> PatchOptions:
        """These options.

        Raises:
            OptionError: a value is unknown or impossible, or an option would have no effect.
        """
        check_choices(self)
        if unknown := [kind for kind in self.at if kind not in KINDS]:
            raise OptionError(f"--at {unknown[0]!r} is not one of {', '.join(KINDS)}")
        check_least(self, batch_size=1, n_random=1, ablate_top=1)
        if not 0 <= self.negligible < 1:
            raise OptionError(f"--negligible is a share of D, from 0 to below 1, got {self.negligible:g}")
        if self.senders and not self.receivers:
            raise OptionError("--from names the senders of paths and needs --to, such as --to logits")
        self._check_ablation()
        if not (self.at or self.receivers or self.ablate):
            raise OptionError("nothing to do: give --at, --to or --ablate")
        return self

    def _check_ablation(self) -> None:
        if self.ablate and self.ablate_top is not None:
            raise OptionError("--ablate and --ablate-top both name the heads to ablate; give one of them")
        if self.ablate_top is not None and "heads" not in self.at:
            raise OptionError("--ablate-top takes the first movers, which --at heads finds; add heads to --at")
        if self.ablation != "corrupt" and not self.ablate and self.ablate_top is None:
            raise OptionError(
                f"--ablation {self.ablation} is what ablated heads write and needs --ablate or --ablate-top; sites and "
                "paths are always patched with the other persona's run"
            )
