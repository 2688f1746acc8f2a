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
from persona_circuits.persona.study.numbers import Estimates, Found
from persona_circuits.persona.vectors import default_kind

__all__ = ["run_steering"]

DEPTHS = (0.25, 0.5, 0.75, 0.9)


def run_steering(context: Context, folder: Path) -> Found:
    """Both directions, fitted on train and added to test, each with the files of the ``steer`` command."""
    found, options = Found(), context.options
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
        with found.attempt(f"steering along {name}"):
            layer = _chosen_layer(context, own, there, kind, replace(how, n_controls=1, ablate=False))
            study = study_steering(context.model, here, there, kind, how, progress=context.stage(f"steering {name}"))
            (folder / name).mkdir()
            about = {"pairs": here.source, "split": steered, "fitted_on": there.source, "fitting_split": fitted}
            write_steering(study, (), about, folder / name)
            steering_numbers(found, name, study, layer)
            if name == "mean":
                gain_test_numbers(found, study, here.items, **context.draws)
                found.notes.append(f"steering.mean is the direction {kind!r} of the steer command")
    return found


def steering_numbers(found: Found, name: str, study: SteeringStudy, layer: int) -> None:
    """The largest strength within the KL bound behind ``layer``, beside the controls there, and ablation."""
    source, n = f"steering/{name}/steer.json", len(study.prompts)
    best = next(bound for bound in study.bounds if bound.layers == (layer,))
    _bound(found, f"steering.{name}", best, study, source)
    random = best.gains.get("random", ())
    what = "largest gain of random directions at that layer and strength"
    found.add(f"steering.{name}_random.gain", max(random, default=None), what, n=len(random), source=source)
    ablated = [one for one in study.outcomes if one.strength is None]
    for key, control in ((name, "direction"), (f"{name}_random", "random")):
        gains = [one.gain for one in ablated if one.control == control]
        what = "gain when it is taken out: the least over layers" + ("" if control == "direction" else " and draws")
        found.add(f"steering.{key}.ablated", min(gains, default=None), what, n=n, source=source)
    if "steering.unsteered.parted" not in found.numbers:
        parted = float(((study.plain[0] > 0) & (study.plain[1] < 0)).mean())
        what = "share of pairs whose two tokens part unsteered"
        found.add("steering.unsteered.parted", parted, what, unit="share", n=n, source=source)
    found.notes += [f"steering along {name}: {note}" for note in study.notes]


def gain_test_numbers(
    found: Found, study: SteeringStudy, items: Sequence[Item], *, n_resamples: int = 2000, seed: int = 0
) -> None:
    """Whether pairs part where their gain is above g* and only there: pairs with D > 0, all layers and strengths."""
    divergence, prior = study.plain[0] - study.plain[1], study.plain.mean(0)
    asked = divergence > 0
    if not asked.any():
        found.notes.append("gain test: no pair has D > 0")
        return
    swept = np.concatenate([margins[:, :, asked] for margins in study.margins.values()])
    parted = (swept[:, 0] > 0) & (swept[:, 1] < 0)
    above = (swept[:, 0] - swept[:, 1]) > 2 * np.abs(prior[asked])
    estimates = Estimates(
        [item for item, one in zip(items, asked, strict=True) if one], n_resamples=n_resamples, seed=seed
    )
    counted = {
        "above": (parted & above, above, "share that part where the gain is above g*"),
        "below": (parted & ~above, ~above, "share that part where the gain is below g*"),
        "agree": (parted == above, np.ones_like(above), "share that part exactly if the gain is above g*"),
    }
    for key, (hits, cases, what) in counted.items():
        share = estimates.ratio(hits.sum(0), cases.sum(0)) | {"n": int(cases.sum())}
        found.add(f"steering.gain_test.{key}", what=what, unit="share", source="steering/mean/pairs.csv", **share)


def _chosen_layer(context: Context, own: ExampleFile, there: ExampleFile, kind: str, how: SteerOptions) -> int:
    """The layer with the largest gain within the KL bound on pairs that directions are fitted on."""
    study = study_steering(context.model, own, there, kind, how, progress=context.stage("choosing a layer"))
    return max(study.bounds, key=lambda bound: bound.outcome.gain).layers[0]


def _bound(found: Found, name: str, best: Bound, study: SteeringStudy, source: str) -> None:
    one, n = best.outcome, len(study.prompts)
    layer = best.layers[0]
    found.add(f"{name}.layer", layer, "block behind which it is added", unit="layer", source=source)
    what = "largest strength within the KL bound" + (", the largest tried" if best.is_largest else "")
    found.add(f"{name}.strength", best.strength, what, source=source)
    what = "KL from the unsteered model on neutral prompts"
    found.add(f"{name}.kl", one.kl.value, what, estimate=one.kl, unit="nats", n=n, source=source)
    bounds = _gain_bounds(one, study)
    what = "D(s) / D(0); the interval is that of D(s), D(0) as it is"
    found.add(f"{name}.gain", one.gain, what, n=n, source=source, **bounds)
    found.add(f"{name}.parted", one.parted, "share of pairs whose two tokens part", unit="share", n=n, source=source)
    what = "of the pairs with D > 0 that do not part unsteered, the share that do"
    found.add(f"{name}.flipped", one.flipped, what, unit="share", n=one.n_collapsed, source=source)


def _gain_bounds(one: Outcome, study: SteeringStudy) -> dict[str, float]:
    whole = float((study.plain[0] - study.plain[1]).mean())
    if not whole or one.divergence.low is None or one.divergence.high is None:
        return {}
    low, high = sorted((one.divergence.low / whole, one.divergence.high / whole))
    return {"low": low, "high": high}
