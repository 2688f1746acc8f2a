"""Packages that the host libraries import and nothing here uses: left unloaded, and not needed to load a model."""

import subprocess
import sys

import pytest
from conftest import DATA

from persona_circuits.circuit.model.unloaded import UNUSED, left_unloaded

MISSING = ("wandb", "datasets", "pandas", "pyarrow", "opentelemetry", "multiprocess", "dill")
LOADS = f"""
import sys
from importlib.machinery import PathFinder

class Without:
    find_distributions = staticmethod(PathFinder.find_distributions)

    @staticmethod
    def find_spec(name, path=None, target=None):
        missing = {MISSING!r} if sys.argv[2] == "missing" else ()
        return None if name.partition(".")[0] in missing else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from persona_circuits import load_model
assert load_model(sys.argv[1]).graph.n_layers == 3
print(*[name for name in {UNUSED!r} if name in sys.modules])
if sys.argv[2] == "there":
    import datasets, transformer_lens.patching as patching
    from transformer_lens.utilities.hf_utils import Dataset
    assert isinstance(datasets.Dataset.from_dict({{"a": [1]}}), Dataset) and not isinstance(3, Dataset)
    assert len(patching.pd.DataFrame({{"a": [1]}})) == 1
"""


def test_a_placeholder_is_what_it_stands_for_once_it_is_asked(tmp_path, monkeypatch):
    (tmp_path / "rarely.py").write_text("class Kind:\n    pass\ndef double(x):\n    return 2 * x\nVALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    with left_unloaded("rarely"):
        import rarely as kept
        from rarely import Kind, double
    assert "rarely" not in sys.modules
    assert not isinstance(3, Kind)
    assert Kind | None
    assert double(4) == 8
    assert sys.modules["rarely"].VALUE == kept.VALUE == 7
    assert isinstance(Kind(), sys.modules["rarely"].Kind)
    assert isinstance(Kind(), Kind)
    with left_unloaded("rarely"):
        import rarely as again
    assert again.VALUE == 7  # what is loaded already stays
    assert again is sys.modules.pop("rarely")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["there", "missing"])
def test_a_model_is_loaded_without_them(case):
    """As they are there, and as after ``pip uninstall``."""
    done = subprocess.run([sys.executable, "-c", LOADS, DATA / "tiny-gpt2", case], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
