"""Stage ``patch`` of a study: which heads move the persona to the answer, and D without the first of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from persona_circuits.persona.patching import PatchOptions, PatchStudy, study_patching, write_patch
from persona_circuits.persona.steering import some_pairs
from persona_circuits.persona.study.context import PASSES, Context
from persona_circuits.persona.study.numbers import Found

__all__ = ["run_patch"]

SOURCE = "patch/patch.json"
TOP = 5
SHOWN = 10


def run_patch(context: Context, folder: Path) -> Found:
    """Heads patched on pairs of the search split, the first movers ablated on held-out ones; the command's files."""
    found, options = Found(), context.options
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
    patch_numbers(found, study)
    return found


def patch_numbers(found: Found, study: PatchStudy) -> None:
    """How many heads are movers, the first of them, and D without the first ``TOP``."""
    n = len(study.items)
    movers = [one for one in study.movers if one.is_mover]
    what = "heads that carry more than a negligible share of D to the answer (false discovery rate .05)"
    found.add("patch.movers", len(movers), what, n=len(study.movers), source=SOURCE)
    what = "share of D that a head would need to be found by the correction, were it the only one"
    found.add("patch.detectable", study.detectable, what, unit="share", n=n, source=SOURCE)
    for rank, one in enumerate(study.movers[:SHOWN], 1):
        what = f"share of D that {one.head} brings over at the answer"
        about = {"unit": "share", "n": n, "source": SOURCE}
        value = one.denoising.value
        found.add(f"patch.mover.{rank}.denoising", value, what, estimate=one.denoising, p=one.p, **about)
        what = f"share of D that is lost without what {one.head} writes there"
        found.add(f"patch.mover.{rank}.noising", one.noising.value, what, estimate=one.noising, **about)
        found.add(f"patch.mover.{rank}.layer", one.layer, f"layer of {one.head}", unit="layer", source=SOURCE)
    found.extras["movers"] = [one.head for one in movers[:SHOWN]]
    _ablation(found, study)
    found.notes += study.notes


def _ablation(found: Found, study: PatchStudy) -> None:
    ablated = study.ablation
    if ablated is None:
        return
    about = {"unit": "share", "n": ablated.n_pairs, "source": SOURCE}
    what = f"share of D left when {', '.join(ablated.heads)} write the other persona's; p of random sets leaving less"
    found.add("patch.ablated.left", ablated.left.value, what, estimate=ablated.left, p=ablated.p, **about)
    what = "share of prompts whose most likely candidate changes"
    found.add("patch.ablated.changed", ablated.changed, what, p=ablated.p_changed, **about)
    for key, values, text in (
        ("left", ablated.random_left, "share of D left without"),
        ("changed", ablated.random_changed, "share of choices changed by"),
    ):
        if len(values):
            what = f"{text} random sets of as many heads in the same layers, mean"
            count = {"unit": "share", "n": len(values), "source": SOURCE}
            found.add(f"patch.ablated.random_{key}", float(np.mean(values)), what, **count)
