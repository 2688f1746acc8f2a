"""auto-circuit as another process: which models and pairs it can be given, where it is, and how it is asked.

It needs TransformerLens 2 and numpy 1, so it lives in an environment of its own (``make peers``). The other
end is ``benchmarks/peers/autocircuit_worker.py``: one JSON object per line in, one per line out.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from persona_circuits.circuit.errors import ModelError, OptionError, PersonaCircuitsError, TaskError
from persona_circuits.circuit.storage import Kind, read_json
from persona_circuits.circuit.task import Row, shipped
from persona_circuits.metrics import Metric

__all__ = ["PEER_METRICS", "AutoCircuit", "autocircuit_rows", "check_model", "peers_python"]

ENVIRONMENT = "PERSONA_CIRCUITS_PEERS"
CONFIG = Kind("configuration", ModelError)
PEER_METRICS = {"persona-divergence": "logit", "logit-diff": "logit", "prob-diff": "prob"}


def check_model(folder: str | Path) -> None:
    """Raise ``ModelError`` with the reason unless auto-circuit, as it is driven here, can hold this model."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"auto-circuit is handed a local Hugging Face folder, and {folder} is none; download the model and give "
            "its folder with --model"
        )
    config = read_json(path, CONFIG)
    if not isinstance(config, dict):
        raise CONFIG.faulty(path, "holds no JSON object")
    kind, heads = config.get("model_type"), config.get("num_attention_heads")
    groups = config.get("num_key_value_heads", heads)
    reason = None
    if groups != heads:
        reason = f"it has {groups} key-value heads for {heads} query heads, and auto-circuit fails on grouped queries"
    elif kind != "gpt2":
        reason = f"its type is {kind}; only gpt2 folders are turned into the HookedTransformer that auto-circuit needs"
    elif config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
        reason = "it scales attention by layer or not at all, which HookedTransformer does not"
    if reason:
        raise ModelError(f"auto-circuit cannot hold {Path(folder).name}: {reason}. There is no second opinion on it")


def peers_python(given: str | Path | None = None) -> Path:
    """The interpreter of auto-circuit's environment: ``given``, else ``$PERSONA_CIRCUITS_PEERS``, else ``make peers``'.

    Either may be the environment's folder or its interpreter.

    Raises:
        OptionError: there is none.
    """
    where = given or os.environ.get(ENVIRONMENT)
    setup = shipped("benchmarks/peers/setup.sh")
    place = Path(where) if where else setup.parent / ".venv"
    python = place / "bin" / "python" if place.is_dir() else place
    if not python.is_file():
        raise OptionError(
            f"auto-circuit's environment is not at {place}; run make peers in a checkout (or bash {setup} FOLDER), "
            f"and name another place with --peers or {ENVIRONMENT}"
        )
    return python


def autocircuit_rows(rows: Sequence[Row], metric: Metric) -> list[dict[str, list[int]]]:
    """Rows as auto-circuit's process takes them: token ids.

    Raises:
        OptionError: auto-circuit has no such metric.
        TaskError: prompts of a pair differ in length, or the metric would mean something else there.
    """
    if metric.name not in PEER_METRICS:
        raise OptionError(
            f"auto-circuit's scores have no counterpart of metric {metric.name}; they know {', '.join(PEER_METRICS)}"
        )
    for row in rows:
        if len(row.clean) != len(row.corrupt):
            raise TaskError(
                f"row {row.index}: the prompts have {len(row.clean)} and {len(row.corrupt)} tokens; "
                "auto-circuit needs equal lengths"
            )
        if metric.name == "prob-diff" and len(row.answers) * len(row.wrong_answers) > 1:
            raise TaskError(
                f"row {row.index} has several answers on a side: prob-diff adds their probabilities here, "
                "auto-circuit takes the mean"
            )
    keys = ("clean", "corrupt", "answers", "wrong_answers")
    return [{key: list(getattr(row, key)) for key in keys} for row in rows]


class AutoCircuit:
    """auto-circuit's process; a context manager. Every method raises ``PersonaCircuitsError`` if the process ends."""

    def __init__(self, python: str | Path) -> None:
        self.python = Path(python)
        self.script = shipped("benchmarks/peers/autocircuit_worker.py")

    def __enter__(self) -> AutoCircuit:
        # This project's path entries must not reach the other environment: its folders carry the names of packages.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self.process = subprocess.Popen(
                [str(self.python), str(self.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                env=environment,
            )
        except OSError as error:
            self.log.close()
            raise OptionError(f"{self.python} cannot be run ({error.strerror}); run make peers again") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if kind is not None:
            self.process.kill()
        self.process.wait()
        self.log.close()

    def load(
        self, folder: str | Path, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 16, threads: int | None = None
    ) -> dict[str, Any]:
        """Load a model and rows; returns ``n_edges`` and ``versions``."""
        import torch

        return self.ask(
            do="load",
            model=str(Path(folder).resolve()),
            rows=[*rows],
            batch_size=batch_size,
            threads=threads or torch.get_num_threads(),
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one reply.

        Raises:
            ModelError: auto-circuit refuses, with its reason.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ModelError(f"auto-circuit: {reply['error']}")
        return reply

    def _ended(self) -> PersonaCircuitsError:
        self.process.wait()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines() or ["it said nothing"]
        return PersonaCircuitsError(
            f"auto-circuit's process ended with code {self.process.returncode}: {lines[-1]}; "
            "if its environment is incomplete, run make peers again"
        )
