"""The true commands, stopped at random moments and on disks that refuse; at length: ``make reliability``."""

import os
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import reliability

KILLS = int(os.environ.get("PERSONA_CIRCUITS_KILLS", "10"))


@pytest.mark.slow
def test_kills_leave_whole_files_and_reruns_are_identical(tmp_path):
    found = list(reliability.kills(KILLS, tmp_path))
    assert len(found) == KILLS
    assert "| all | " in reliability.kill_table(found)
    assert any(one.code for one in found), "no kill came before the end of its command"


@pytest.mark.slow
def test_disks_that_refuse(tmp_path):
    found = list(reliability.disks(tmp_path, names=("pairs", "export")))
    if all(says.startswith("skipped") for _, _, says in found):
        pytest.skip(found[0][2])
    assert {says for _, _, says in found} == {"written", "refused, old files kept"}
    assert reliability.disk_table(found).count("\n") == 1 + len(reliability.DISKS)
