"""Results of a collapse study."""

from __future__ import annotations

from dataclasses import dataclass

from persona_circuits.persona.behaviour.measure import PairMeasure
from persona_circuits.persona.behaviour.options import StudyOptions
from persona_circuits.persona.behaviour.prediction import Prediction
from persona_circuits.persona.data import Estimate
from persona_circuits.persona.data.words import Words

__all__ = ["AXES", "PARAPHRASE", "CollapseStudy", "Group", "PairRow", "QuestionSummary", "Summary"]

AXES = ("contrast", "bias", "placement", "prior_level", "held_out", "domain")
PARAPHRASE = "paraphrase"


@dataclass(frozen=True)
class PairRow:
    """A pair's measures, and what the whole study says of them.

    ``bias`` is ``high``, ``low`` or ``unknown``; ``bias_source`` is ``neutral`` (measured),
    ``file`` (the pair file says so) or ``none``. ``outcome`` is the first that fits of ``no signal``
    (|D| < 2 sigma_0), ``reversed`` (D < 0), ``collapse`` (one choice of all candidates), ``apart``.
    """

    measure: PairMeasure
    bias: str
    bias_source: str
    outcome: str

    def axis(self, name: str) -> str:
        """The pair's value on an axis, the study's own bias bin for ``bias``; empty where it has none."""
        return self.bias if name == "bias" else self.measure.item.axes.get(name, "")


@dataclass(frozen=True)
class Summary:
    """Some pairs together. Shares in [0, 1]; D and b in logits, information in nats.

    ``p_zero`` is the sign-flip p of D = 0; ``dominance`` the quartiles of PDR;
    ``collapse`` over all candidates, ``agree`` within the two declared tokens;
    ``no_signal`` is None where sigma_0 is unknown.
    """

    n: int
    n_persona_pairs: int
    n_questions: int
    divergence: Estimate
    p_zero: float
    prior: Estimate
    dominance: tuple[float, float, float] | None
    collapse: Estimate
    agree: float
    reversed: float
    no_signal: float | None
    jensen_shannon: Estimate
    soft_collapse: float
    mass: float
    low_mass: float


@dataclass(frozen=True)
class Group:
    """The pairs of one value of an axis, and the paraphrase controls beside them."""

    axis: str
    value: str
    summary: Summary
    paraphrase: Summary | None
    paraphrase_matched: bool


@dataclass(frozen=True)
class QuestionSummary:
    """One question over the personas that it was put to; their logits are averaged over their prompts.

    The fields from ``modal_share`` on need two named personas and one candidate list,
    and are None otherwise. ``paraphrase_*`` are this question's paraphrase controls.
    """

    question: str
    domain: str
    n: int
    n_personas: int
    divergence: float
    prior: float
    neutral_lead: float | None
    bias: str
    collapse: float
    mass: float
    modal_share: float | None
    effective_preferences: float | None
    choice_information: float | None
    soft_collapse: float | None
    prior_share: float | None
    paraphrase_n: int
    paraphrase_collapse: float | None
    paraphrase_soft_collapse: float | None


@dataclass(frozen=True)
class CollapseStudy:
    """Everything that was found. ``pairs`` and ``controls`` in the files' order.

    ``placement`` is mean D late minus mean D early, None unless there are both. ``order_effect`` is the spread of the
    margin between orders of listed options, None where none are listed; ``words`` what the model would rather say.
    ``sigma_0`` is a root mean square,
    ``sigma_0_interval`` its interval over what paraphrases share; ``sigma_0_median`` is 1.4826 times the median |D|,
    which a few bad paraphrases do not move. ``rows_per_pair`` is how many rows of other
    paraphrases and wordings most pairs are the mean of; sigma_0 is of means over as many.
    """

    model: str
    fingerprint: str
    sources: tuple[tuple[str, str], ...]
    options: StudyOptions
    sigma_0: float | None
    sigma_0_interval: Estimate | None
    sigma_0_median: float | None
    n_paraphrases: int
    overall: Group
    groups: tuple[Group, ...]
    controls: tuple[Group, ...]
    questions: tuple[QuestionSummary, ...]
    placement: Estimate | None
    pairs: tuple[PairRow, ...]
    control_pairs: tuple[PairRow, ...]
    notes: tuple[str, ...]
    order_effect: float | None = None
    words: Words = ()
    rows_per_pair: int = 1
    prediction: Prediction | None = None
