"""The behavioural study: where two personas get one answer, and whether persona or prior decides.

1. every pair is asked under both personas, its question also under none in other wordings;
   paraphrase controls are asked like pairs (``persona.behaviour.measure``);
   where options are listed, a pair is the mean over all orders of its list; with ``average`` it is the mean over
   all paraphrases and wordings of the same two personas and question (``persona.behaviour.wordings``);
2. sigma_0, the spread of D over paraphrases of one persona, says which D are no signal;
3. every pair gets a bias bin, from its neutral wordings where there are any;
   with ``predict`` collapse is predicted from other wordings (``persona.behaviour.prediction``);
4. pairs are summarised together and along each axis, with the paraphrases of the same
   value of that axis beside them (all paraphrases where it has none);
5. every question is summarised over the personas that were asked it.

Intervals are two-way cluster bootstraps over persona pairs and questions; the p of
D = 0 flips the signs of all pairs of two personas together (``persona.data.statistics``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.persona.behaviour.measure import measure_pairs
from persona_circuits.persona.behaviour.options import StudyOptions
from persona_circuits.persona.behaviour.orders import averaged
from persona_circuits.persona.behaviour.prediction import predicted
from persona_circuits.persona.behaviour.results import CollapseStudy
from persona_circuits.persona.behaviour.summary import summarise
from persona_circuits.persona.behaviour.wordings import pooled
from persona_circuits.persona.data import ItemFile, Neutral

__all__ = ["study_collapse"]


def study_collapse(
    model: Model,
    pairs: ItemFile,
    *,
    controls: ItemFile | None = None,
    neutral: Sequence[Neutral] = (),
    options: StudyOptions | None = None,
    progress: Progress | None = None,
) -> CollapseStudy:
    """Measure persona collapse on a model.

    Parameters
    ----------
    pairs
        The pairs of the study; rows with a ``control`` are controls.
    controls
        More pairs, of which the rows with a ``control`` are taken, whatever their split.
    neutral
        Wordings without a persona; those that a pair itself uses are left out for it.
    progress
        Called with the number of prompts done and of all.

    Returns
    -------
    Divergence, prior, collapse and mass of every pair and control, and their means with intervals.

    Raises
    ------
    OptionError
        A number among the options is out of range.
    TaskError
        No pair is left to study, or one does not fit the model's tokenizer.
    """
    options = (options or StudyOptions()).checked()
    chosen = pairs.of_split(options.split)
    items = [*chosen.items, *(item for item in (controls.items if controls else ()) if item.control != "none")]
    if all(item.control != "none" for item in items):
        raise OptionError(f"{pairs.source} holds controls only; give a file with pairs of two personas as well")
    if options.predict and neutral:  # a row's own neutral prompt has the row's own wording
        items = [replace(item, pair=replace(item.pair, neutral="")) for item in items]
    measures = measure_pairs(
        model,
        items,
        source=pairs.source if controls is None else f"{pairs.source} with {controls.source}",
        neutral=neutral,
        batch_size=options.batch_size,
        progress=progress,
        align=options.align,
    )
    sources = tuple((file.source, file.sha256) for file in (pairs, controls) if file is not None)
    measures = averaged(measures)
    draws = {"n_resamples": options.n_resamples, "seed": options.seed}
    prediction = predicted(measures, **draws) if options.predict else None
    measures = pooled(measures) if options.average else measures
    study = summarise(measures, options, model=model.name, fingerprint=model.fingerprint, sources=sources)
    return replace(study, prediction=prediction)
