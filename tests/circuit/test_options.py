"""Options made in a loop over numpy arrays are those made by hand, and their results can be written."""

from dataclasses import fields
from types import NoneType
from typing import get_args, get_origin, get_type_hints

import jaxtyping
import numpy as np
import pytest

from persona_circuits.circuit.assessment import CurveOptions, EvaluationOptions
from persona_circuits.circuit.assessment.options import ComparisonOptions
from persona_circuits.circuit.discovery import MeasureOptions, Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.io import read_circuit, write_circuit
from persona_circuits.circuit.peers import CrosscheckOptions
from persona_circuits.circuit.profiling import BenchOptions, InspectOptions
from persona_circuits.persona.behaviour import collapse
from persona_circuits.persona.bridge import BridgeOptions
from persona_circuits.persona.explanation import ExplainOptions
from persona_circuits.persona.lens import LensOptions
from persona_circuits.persona.neurons import NeuronOptions
from persona_circuits.persona.pairs import PairOptions, PriorOptions
from persona_circuits.persona.patching import PatchOptions
from persona_circuits.persona.probing import ProbeOptions
from persona_circuits.persona.responses import EndpointOptions, Plan, RatingOptions, Sampling
from persona_circuits.persona.steering import SteerOptions
from persona_circuits.persona.study import context as study_context
from persona_circuits.persona.vectors.options import VectorOptions

ALL = [
    *(Options, CurveOptions, BenchOptions, CrosscheckOptions, collapse.StudyOptions, study_context.StudyOptions),
    *(PatchOptions, BridgeOptions, ExplainOptions, LensOptions, NeuronOptions, PairOptions, PriorOptions),
    *(ProbeOptions, Sampling, SteerOptions, MeasureOptions, EvaluationOptions, ComparisonOptions, InspectOptions),
    *(Plan, EndpointOptions, RatingOptions, VectorOptions),
]
VALUES = {"int": (np.int64(7), 7), "float": (np.float32(0.25), 0.25), "bool": (np.bool_(True), True)}


@pytest.fixture(autouse=True)
def as_in_production():
    """Where shapes and types of arguments are checked, what is to be converted would be refused."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def plain_name(hint):
    """``int`` of ``int | None``, ``tuple[int, ...]`` as it is."""
    kinds = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    return getattr(kinds[0], "__name__", "") if get_origin(kinds[0]) is None else str(kinds[0])


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_numbers_of_numpy_become_pythons(kind):
    """Every number of every set of options, inside tuples too."""
    wanted = {
        name: plain_name(hint)
        for name, hint in get_type_hints(kind).items()
        if name in {field.name for field in fields(kind)}
    }
    given = {name: VALUES[type_] for name, type_ in wanted.items() if type_ in VALUES}
    given |= {
        name: ((VALUES[type_[6:-5]][0],), (VALUES[type_[6:-5]][1],))
        for name, type_ in wanted.items()
        if type_.startswith("tuple[") and type_[6:-5] in VALUES
    }
    assert given
    made = kind(**{name: numpys for name, (numpys, _) in given.items()})
    for name, (_, expected) in given.items():
        found = getattr(made, name)
        assert (found, repr(found)) == (expected, repr(expected)), name


@pytest.mark.parametrize(
    "options",
    [
        {"prune": "top-n", "top_n": np.int64(20), "threshold": None},
        {"seed": np.int64(3)},
        {"threshold": np.float32(0.01)},
        {"sweep": np.bool_(True), "steps": np.array(2)},
    ],
)
def test_what_was_found_with_them_can_be_written(tiny, tiny_task, tmp_path, options):
    found = discover(tiny, tiny_task, Options(**{"threshold": 0.1, "n_random": 0, **options}))
    write_circuit(found.record, tmp_path / "circuit.json")
    assert read_circuit(tmp_path / "circuit.json")


def test_a_fraction_where_a_whole_number_is_wanted():
    assert Options(top_n=20.0).top_n == 20
    with pytest.raises(OptionError, match=r"top_n must be a whole number, got 2\.5"):
        Options(top_n=np.float64(2.5))
