"""The study's pair files: made again byte for byte, spread as they say, new in the ways that they name."""

import json
from collections import Counter

import pytest
from conftest import ROOT

from persona_circuits.models.world import (
    HELD_OUT,
    VARIANTS,
    build_world,
    descriptions,
    held_out_description,
    study_files,
    study_pairs,
    variant_pairs,
)

WORLD = build_world()
PERSONAS = {p.id: p for p in WORLD.personas}


def test_the_shipped_files_are_made_again():
    for name, text in study_files(WORLD).items():
        assert (ROOT / "datasets" / name).read_text() == text, (
            f"{name}: run python -m persona_circuits.models.world.study"
        )


def test_every_cell_is_as_large_as_every_other():
    rows = study_pairs(WORLD)
    cells = Counter((r["held_out"], r["contrast"], r["bias"], r["placement"]) for r in rows)
    assert {count for (new, *_), count in cells.items() if new == "none"} == {12}
    assert {count for (new, *_), count in cells.items() if new != "none"} == {4}
    keys = [(*sorted((r["persona_a"], r["persona_b"])), r["question"]) for r in rows]
    assert len(set(keys)) == len(keys) == 256


@pytest.mark.parametrize("new", HELD_OUT)
def test_test_pairs_are_new_in_their_own_way_only(new):
    rows = study_pairs(WORLD)
    train = [r for r in rows if r["split"] == "train"]
    people = {r[side] for r in train for side in ("persona_a", "persona_b")}
    asked, domains = {r["question"] for r in train}, {r["domain"] for r in train}
    for row in (r for r in rows if r["held_out"] == new):
        pair = {row["persona_a"], row["persona_b"]}
        assert bool(pair & people) == (new != "persona") or new == "pair"
        assert (row["domain"] not in domains) == (new == "domain")
        if new == "question":
            assert row["question"] not in asked


def test_nothing_is_new_to_the_model():
    for row in [*study_pairs(WORLD), *variant_pairs(WORLD)]:
        for side, text in (("persona_a", row["clean"]), ("persona_b", row["corrupt"])):
            persona = PERSONAS[row[side]]
            question = next(q for q in WORLD.questions if q.id == row["question"])
            assert not WORLD.is_held_out(persona, question)
            assert descriptions(persona)[held_out_description(WORLD, persona)] not in text


def test_variants_of_a_base_ask_the_same():
    rows = variant_pairs(WORLD)
    for i in range(0, len(rows), len(VARIANTS)):
        group = rows[i : i + len(VARIANTS)]
        assert [r["variant"] for r in group] == list(VARIANTS)
        assert len({json.dumps([r["base"], r["answers"], r["question"], r["persona_a"]]) for r in group}) == 1
        divergence = {r["generator"]["divergence"] for r in group if r["variant"] != "mention"}
        assert len(divergence) == 1
        assert 0 not in divergence
        assert [r["generator"]["divergence"] for r in group if r["variant"] == "mention"] == [0.0]
