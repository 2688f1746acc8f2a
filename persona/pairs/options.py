"""Choices of pair files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.choices import ALIGNMENTS
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, check_choices, check_least

__all__ = ["PairOptions", "PriorOptions"]

LEAKS = ("drop", "keep", "only")


@dataclass(frozen=True)
class PairOptions(PlainNumbers):
    """How pairs are chosen.

    ``test_share`` is the share of meetings, and of question wordings, that is held out (0: no
    splits); ``per_question`` the most pairs of one question, ``variants`` the most rows of
    each pair; ``filler`` the sentences per prompt.
    ``align`` is ``equal`` or ``right``, which takes paraphrases of unequal length where there are no
    equal ones. ``neutral`` adds the question under no persona to every pair; ``null`` makes pairs of
    two paraphrases of one persona, too. With ``forms`` an option is a set of them, of any number of tokens.
    """

    seed: Annotated[int, Option("Seed of splits, order, wordings and filler.")] = 0
    max_pairs: Annotated[int, Option("Pairs to write at most.")] = 1000
    per_question: Annotated[int | None, Option("Pairs of one question at most, per split.")] = None
    variants: Annotated[
        int, Option("Rows of one persona pair and question at most, in other paraphrases and wordings.")
    ] = 1
    test_share: Annotated[float, Option("Share of persona pairs and wordings held out; 0: none.")] = 0.2
    leaks: Annotated[str, Option("Pairs with an option in a persona's text.", choices=LEAKS)] = "drop"
    filler: Annotated[int, Option("Filler sentences per prompt, from the template's list.")] = 0
    align: Annotated[
        str, Option("right: where no paraphrases have equal token length, the nearest; see --null.", choices=ALIGNMENTS)
    ] = "equal"
    neutral: Annotated[
        bool, Option("Add the question under no persona to every pair, for --ablation neutral.", name="--add-neutral")
    ] = False
    forms: Annotated[
        bool, Option("An option is all that it may look like: capital, article, plural, synonyms, several tokens.")
    ] = False
    null: bool = False

    def checked(self) -> PairOptions:
        """These options, or an OptionError where one makes no sense."""
        check_choices(self)
        check_least(self, max_pairs=1, per_question=1, variants=1, filler=0)
        if not 0 <= self.test_share < 1:
            raise OptionError(f"--test-share must be at least 0 and below 1, got {self.test_share:g}")
        return self


@dataclass(frozen=True)
class PriorOptions(PlainNumbers):
    """How prior pairs are chosen: ``min_lead`` in logits without a persona, ``max_pairs`` per split."""

    min_lead: Annotated[float, Option("Logits by which a default must lead the other option under no persona.")] = 1.0
    max_pairs: Annotated[int, Option("Pairs to write at most, per split.")] = 64
    batch_size: BatchSize = 32
    seed: Annotated[int, Option("Seed of the order.")] = 0

    def checked(self) -> PriorOptions:
        """These options, or an OptionError where one makes no sense."""
        if self.max_pairs < 2:
            raise OptionError(f"--max-pairs must be at least 2, one for either persona, got {self.max_pairs}")
        check_least(self, min_lead=0, batch_size=1)
        return self
