"""Stage ``patch`` of a study: which heads move the persona to the answer, and D without the first of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from persona_circuits.persona.patching import PatchOptions, PatchStudy, study_patching, write_patch
from persona_circuits.persona.steering import some_pairs
from persona_circuits.persona.study.context import PASSES, Context
from persona_circuits.persona.study.numbers import StageNumbers

__all__ = ["run_patch"]

TOP = 5
SHOWN = 10


def run_patch(context: Context, folder: Path) -> StageNumbers:
    """Heads patched on pairs of the search split, the first movers ablated on held-out ones; the command's files."""
    numbers, options = StageNumbers("patch/patch.json"), context.options
    train, test = (
        some_pairs(context.examples(split), PASSES * options.max_pairs) for split in context.fitted_and_held_out
    )
    how = PatchOptions(
        at=("heads",),
        parts="named",
        ablate_top=TOP,
        n_random=9 if options.quick else 100 if options.thorough else 39,
        batch_size=options.batch_size,
        seed=options.seed,
    ).checked()
    study = study_patching(
        context.model, train, test, options=how, state=context.kept("patch.state"), stage=context.stage
    )
    write_patch(study, folder)
    patch_numbers(numbers, study)
    return numbers


def patch_numbers(numbers: StageNumbers, study: PatchStudy) -> None:
    """How many heads are movers, the first of them, and D without the first ``TOP``."""
    n = len(study.items)
    movers = [mover for mover in study.movers if mover.is_mover]
    what = "heads that carry more than a negligible share of D to the answer (false discovery rate .05)"
    numbers.add("patch.movers", len(movers), what, n=len(study.movers))
    what = "share of D that a head would need to be found by the correction, were it the only one"
    numbers.add("patch.detectable", study.detectable, what, unit="share", n=n)
    for rank, mover in enumerate(study.movers[:SHOWN], 1):
        what = f"share of D that {mover.head} brings over at the answer"
        about = {"unit": "share", "n": n}
        value = mover.denoising.value
        numbers.add(f"patch.mover.{rank}.denoising", value, what, estimate=mover.denoising, p=mover.p, **about)
        what = f"share of D that is lost without what {mover.head} writes there"
        numbers.add(f"patch.mover.{rank}.noising", mover.noising.value, what, estimate=mover.noising, **about)
        numbers.add(f"patch.mover.{rank}.layer", mover.layer, f"layer of {mover.head}", unit="layer")
    numbers.extras["movers"] = [mover.head for mover in movers[:SHOWN]]
    _ablation(numbers, study)
    numbers.notes += study.notes


def _ablation(numbers: StageNumbers, study: PatchStudy) -> None:
    ablated = study.ablation
    if ablated is None:
        return
    about = {"unit": "share", "n": ablated.n_pairs}
    what = f"share of D left when {', '.join(ablated.heads)} write the other persona's; p of random sets leaving less"
    numbers.add("patch.ablated.left", ablated.left.value, what, estimate=ablated.left, p=ablated.p, **about)
    what = "share of prompts whose most likely candidate changes"
    numbers.add("patch.ablated.changed", ablated.changed, what, p=ablated.p_changed, **about)
    for key, values, text in (
        ("left", ablated.random_left, "share of D left without"),
        ("changed", ablated.random_changed, "share of choices changed by"),
    ):
        if len(values):
            what = f"{text} random sets of as many heads in the same layers, mean"
            count = {"unit": "share", "n": len(values)}
            numbers.add(f"patch.ablated.random_{key}", float(np.mean(values)), what, **count)
