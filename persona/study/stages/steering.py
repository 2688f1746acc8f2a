"""Stage ``steering`` of a study: the mean difference of personas and the readout, added, against random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from persona_circuits.persona.data import ExampleFile
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.steering import (
    Bound,
    Outcome,
    SteeringStudy,
    SteerOptions,
    some_pairs,
    study_steering,
    write_steering,
)
from persona_circuits.persona.streams import chosen_layer
from persona_circuits.persona.study.context import PASSES, Context
from persona_circuits.persona.study.numbers import Estimates, StageNumbers
from persona_circuits.persona.vectors import default_kind

__all__ = ["run_steering"]

DEPTHS = (0.25, 0.5, 0.75, 0.9)


def run_steering(context: Context, folder: Path) -> StageNumbers:
    """Both directions, fitted on train and added to test, each with the files of the ``steer`` command."""
    numbers, options = StageNumbers(), context.options
    fitted, steered = context.fitted_and_held_out
    there, here = context.examples(fitted), some_pairs(context.examples(steered), PASSES * options.max_pairs)
    n = context.model.graph.n_layers
    depths = DEPTHS[1:3] if options.quick else DEPTHS
    how = SteerOptions(
        tuple(chosen_layer(n, None, share) for share in depths),
        strengths=(1.0, 4.0) if options.quick else (0.5, 1.0, 2.0, 4.0),
        n_controls=1 if options.quick else 3,
        n_resamples=options.n_resamples,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    own = here if fitted == steered else some_pairs(there, PASSES * options.max_pairs)
    for name, kind in (("mean", default_kind(there.examples, here.examples)), ("readout", "readout")):
        with numbers.attempt(f"steering along {name}"):
            layer = _chosen_layer(context, own, there, kind, replace(how, n_controls=1, ablate=False))
            study = study_steering(context.model, here, there, kind, how, progress=context.stage(f"steering {name}"))
            (folder / name).mkdir()
            about = {"pairs": here.source, "split": steered, "fitted_on": there.source, "fitting_split": fitted}
            write_steering(study, (), about, folder / name)
            steering_numbers(numbers, name, study, layer)
            if name == "mean":
                gain_test_numbers(numbers, study, here.items, **context.draws)
                numbers.notes.append(f"steering.mean is the direction {kind!r} of the steer command")
    return numbers


def steering_numbers(numbers: StageNumbers, name: str, study: SteeringStudy, layer: int) -> None:
    """The largest strength within the KL bound after ``layer``, beside the controls there, and ablation."""
    source, n = f"steering/{name}/steer.json", len(study.prompts)
    best = next(bound for bound in study.bounds if bound.layers == (layer,))
    _bound(numbers, f"steering.{name}", best, study, source)
    random = best.gains.get("random", ())
    what = "largest gain of random directions at that layer and strength"
    numbers.add(f"steering.{name}_random.gain", max(random, default=None), what, n=len(random), source=source)
    ablated = [outcome for outcome in study.outcomes if outcome.strength is None]
    for key, control in ((name, "direction"), (f"{name}_random", "random")):
        gains = [outcome.gain for outcome in ablated if outcome.control == control]
        what = "gain when it is taken out: the least over layers" + ("" if control == "direction" else " and draws")
        numbers.add(f"steering.{key}.ablated", min(gains, default=None), what, n=n, source=source)
    if "steering.unsteered.parted" not in numbers.numbers:
        share = float(((study.plain[0] > 0) & (study.plain[1] < 0)).mean())
        what = "share of pairs whose two tokens part unsteered"
        numbers.add("steering.unsteered.parted", share, what, unit="share", n=n, source=source)
    numbers.notes += [f"steering along {name}: {note}" for note in study.notes]


def gain_test_numbers(
    numbers: StageNumbers, study: SteeringStudy, items: Sequence[Item], *, n_resamples: int = 2000, seed: int = 0
) -> None:
    """Whether choices differ where the gain is above g* and only there: pairs with D > 0, all layers and strengths."""
    divergence, prior = study.plain[0] - study.plain[1], study.plain.mean(0)
    asked = divergence > 0
    if not asked.any():
        numbers.notes.append("gain test: no pair has D > 0")
        return
    swept = np.concatenate([margins[:, :, asked] for margins in study.margins.values()])
    separated = (swept[:, 0] > 0) & (swept[:, 1] < 0)
    above = (swept[:, 0] - swept[:, 1]) > 2 * np.abs(prior[asked])
    estimates = Estimates(
        [item for item, is_asked in zip(items, asked, strict=True) if is_asked], n_resamples=n_resamples, seed=seed
    )
    counted = {
        "above": (separated & above, above, "share that part where the gain is above g*"),
        "below": (separated & ~above, ~above, "share that part where the gain is below g*"),
        "agree": (separated == above, np.ones_like(above), "share that part exactly if the gain is above g*"),
    }
    for key, (hits, cases, what) in counted.items():
        share = estimates.ratio(hits.sum(0), cases.sum(0)) | {"n": int(cases.sum())}
        numbers.add(f"steering.gain_test.{key}", what=what, unit="share", source="steering/mean/pairs.csv", **share)


def _chosen_layer(context: Context, own: ExampleFile, there: ExampleFile, kind: str, how: SteerOptions) -> int:
    """The layer with the largest gain within the KL bound on pairs that directions are fitted on."""
    study = study_steering(context.model, own, there, kind, how, progress=context.stage("choosing a layer"))
    return max(study.bounds, key=lambda bound: bound.outcome.gain).layers[0]


def _bound(numbers: StageNumbers, name: str, best: Bound, study: SteeringStudy, source: str) -> None:
    outcome, n = best.outcome, len(study.prompts)
    layer = best.layers[0]
    numbers.add(f"{name}.layer", layer, "block after which it is added", unit="layer", source=source)
    what = "largest strength within the KL bound" + (", the largest tried" if best.is_largest else "")
    numbers.add(f"{name}.strength", best.strength, what, source=source)
    what = "KL from the unsteered model on neutral prompts"
    numbers.add(f"{name}.kl", outcome.kl.value, what, estimate=outcome.kl, unit="nats", n=n, source=source)
    bounds = _gain_bounds(outcome, study)
    what = "D(s) / D(0); the interval is that of D(s), D(0) as it is"
    numbers.add(f"{name}.gain", outcome.gain, what, n=n, source=source, **bounds)
    what = "share of pairs whose two tokens part"
    numbers.add(f"{name}.parted", outcome.parted, what, unit="share", n=n, source=source)
    what = "of the pairs with D > 0 that do not part unsteered, the share that do"
    numbers.add(f"{name}.flipped", outcome.flipped, what, unit="share", n=outcome.n_collapsed, source=source)


def _gain_bounds(outcome: Outcome, study: SteeringStudy) -> dict[str, float]:
    whole = float((study.plain[0] - study.plain[1]).mean())
    if not whole or outcome.divergence.low is None or outcome.divergence.high is None:
        return {}
    low, high = sorted((outcome.divergence.low / whole, outcome.divergence.high / whole))
    return {"low": low, "high": high}
