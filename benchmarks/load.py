"""What large files cost: pairs checked, circuits read and compared, graphs exported; time of the processor and memory.

    python benchmarks/load.py                          # or: make bench-load
    python benchmarks/load.py --before CHECKOUT        # the same steps with an older checkout's packages, beside these
    python benchmarks/load.py --tiny                   # tries the code

Every step runs in a process of its own on one thread, on files that are made anew. Seconds are the processor's;
memory is the largest resident set less what was resident before the step. Writes a table into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tables import machine_line, markdown_table, replace_section

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
LARGE = {"pairs": 100_000, "layers": 30, "heads": 9, "edges": 50_000, "draws": 200, "export": 40}
TINY = {"pairs": 200, "layers": 4, "heads": 3, "edges": 100, "draws": 3, "export": 4}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the table."""
    options = _parse(argv)
    sizes = TINY if options.tiny else LARGE
    if options.step:
        print(json.dumps(_measured(options.step, Path(options.folder), sizes)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), sizes)
        checkouts = [ROOT, *([options.before] if options.before else [])]
        found = [{step: _in_process(step, root, folder, options.tiny) for step in STEPS} for root in checkouts]
    columns = ("step", "CPU s", "MB", *(("CPU s before", "MB before") if options.before else ()))
    rows = [(_name(step, sizes), *(cell for one in found for cell in one[step])) for step in STEPS]
    table = markdown_table(columns, rows)
    print(table)
    if not options.tiny:
        from persona_circuits.circuit.profiling import machine

        replace_section(options.page, "load", f"{machine_line({**machine('cpu'), 'threads': 1})}\n\n{table}")
    return 0


def _check_pairs(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    from transformers import AutoTokenizer

    from persona_circuits.circuit.task import encode, load_task

    class Reader:
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "persona-world")
        name, n_context = "persona-world", 64

    return lambda: encode(load_task(folder / "pairs.jsonl"), Reader())


def _read(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    from persona_circuits.circuit.io import read_circuit

    return lambda: read_circuit(folder / "a.json")


def _validate(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    from persona_circuits.circuit.io import faults_of

    return lambda: faults_of(folder / "circuit.json")


def _compare(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    from persona_circuits.circuit.assessment.comparison import compare, read_side

    sides = [folder / "a.json", folder / "b.json"]
    return lambda: compare(*map(read_side, sides), n_draws=sizes["draws"]).as_dict()


def _export(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    from persona_circuits.circuit.io import write_eap_ig

    circuit, scores = _random(sizes["export"], sizes["export"], sizes["edges"], 0)
    return lambda: write_eap_ig(circuit, scores, folder / "export.json")


STEPS: dict[str, tuple[str, Callable[[Path, dict[str, int]], Callable[[], object]]]] = {
    "pairs": ("read {pairs:,} pairs and check them against a tokenizer", _check_pairs),
    "read": ("read EAP-IG's JSON, {layers} layers of {heads} heads", _read),
    "validate": ("check a circuit.json of {edges:,} edges", _validate),
    "compare": ("compare two circuits of {edges:,} edges, {draws} draws", _compare),
    "export": ("write EAP-IG's JSON, {export} layers of {export} heads", _export),
}


def _name(step: str, sizes: dict[str, int]) -> str:
    return STEPS[step][0].format(**sizes)


def _random(layers: int, heads: int, edges: int, seed: int):
    """A circuit of random edges with random scores."""
    import numpy as np

    from persona_circuits.circuit.graph import Graph
    from persona_circuits.circuit.scores import Scores
    from persona_circuits.circuit.subgraph import Circuit

    graph, rng = Graph(layers, heads), np.random.default_rng(seed)
    mask = np.zeros(graph.valid.shape, dtype=bool)
    places = np.flatnonzero(graph.valid)
    mask.flat[rng.choice(places, min(edges, len(places)), replace=False)] = True
    return Circuit(graph, mask), Scores(graph, rng.standard_normal(graph.valid.shape))


def _make(folder: Path, sizes: dict[str, int]) -> None:
    """The files that the steps read."""
    from persona_circuits.circuit.io import circuit_record, write_eap_ig

    lines = (ROOT / "datasets" / "pairs_demo.jsonl").read_text(encoding="utf-8").splitlines()
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for i in range(sizes["pairs"]):
            file.write(json.dumps({**json.loads(lines[i % len(lines)]), "id": f"{i:06d}"}) + "\n")
    for name, seed in (("a", 0), ("b", 1)):
        circuit, scores = _random(sizes["layers"], sizes["heads"], sizes["edges"], seed)
        write_eap_ig(circuit, scores, folder / f"{name}.json")
    (folder / "circuit.json").write_text(json.dumps(circuit_record(circuit, scores, _about(circuit.graph))))


def _about(graph) -> dict:
    """The keys of a record that a circuit alone does not have."""
    model = {"name": "m", "revision": None, "dtype": "float32", "fingerprint": "0" * 64, "parallel": False}
    task = {"source": "p", "sha256": "0" * 64, "split": "train", "n_pairs": 1, "metric": "logit-diff"}
    task |= {"unit": "logits", "swap_rows": False, "align": "equal", "where": {}, "divergence": 1.0}
    method = {"scores": "eap", "steps": None, "ig_rule": None, "prune": "top-n", "threshold": None}
    return {
        "model": {**model, "n_layers": graph.n_layers, "n_heads": graph.n_heads},
        "task": task,
        "method": {**method, "threshold_on": None, "tau": None, "top_n": 1},
        "ablation": "corrupt",
        "seed": 0,
        "faithfulness": [],
        "versions": {},
    }


def _in_process(step: str, root: Path, folder: str, tiny: bool) -> tuple[str, str]:
    """Seconds and megabytes of a step with the packages of this checkout."""
    code = [sys.executable, str(Path(__file__).resolve()), "--step", step, "--folder", folder]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*code, *(["--tiny"] if tiny else [])], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    print(f"{root.name}: {step}: {seconds:.1f} s, {megabytes:.0f} MB", file=sys.stderr)
    return f"{seconds:.1f}", f"{megabytes:,.0f}"


def _measured(step: str, folder: Path, sizes: dict[str, int]) -> tuple[float, float]:
    work = STEPS[step][1](folder, sizes)
    before, start = _resident("VmRSS"), time.process_time()
    work()
    return time.process_time() - start, _resident("VmHWM") - before


def _resident(field: str) -> float:
    """Megabytes resident now, or at most so far; what ``getrusage`` says may be the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What large files cost.")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier state, to measure beside this one")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--tiny", action="store_true", help="small files, nothing is written")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
