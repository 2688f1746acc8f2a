"""A folder of runs in a browser on this machine: a list, a page per run, two circuits side by side."""

from persona_circuits.circuit.viewing.runs import Run, runs_in
from persona_circuits.circuit.viewing.server import Viewer, viewer_of

__all__ = ["Run", "Viewer", "runs_in", "viewer_of"]
