"""What large files cost: pairs checked, circuits read and compared, graphs exported, a model loaded; CPU time, memory.

    python benchmarks/load.py                          # or: make bench-load
    python benchmarks/load.py --before CHECKOUT        # the same steps with an older checkout's packages, beside these
    python benchmarks/load.py --model FOLDER           # and a model, bare and with its check
    python benchmarks/load.py --tiny                   # tries the code

Every step runs in a process of its own on one thread, on files that are made anew. Seconds are the processor's;
memory is the largest resident set less what was resident before the step. A model is loaded five times, the least
counts. Writes a table into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

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
    steps, rounds, section = (LOADS, ROUNDS, "model-load") if options.model else (FILES, 1, "load")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.model:
            (folder / "model").symlink_to(options.model.resolve())
        else:
            _make(folder, sizes)
        checkouts = [ROOT, *([options.before] if options.before else [])]
        cells = _least(
            steps,
            [_packages(root.resolve(), folder / str(i)) for i, root in enumerate(checkouts)],
            options,
            folder,
            rounds,
        )
    columns = ("step", "CPU s", "MB", *(("CPU s before", "MB before") if options.before else ()))
    table = markdown_table(columns, [(steps[step][0].format(**sizes), *row) for step, row in cells.items()])
    print(table)
    if not options.tiny:
        from persona_circuits.circuit.profiling import machine

        replace_section(options.page, section, f"{machine_line({**machine('cpu'), 'threads': 1})}\n\n{table}")
    return 0


def _packages(root: Path, place: Path) -> Path:
    """A folder in which ``persona_circuits`` is this checkout's."""
    place.mkdir()
    (place / "persona_circuits").symlink_to(root)
    return place


def _least(
    steps: Mapping[str, Any], packages: Sequence[Path], options: argparse.Namespace, folder: Path, rounds: int
) -> dict[str, list[str]]:
    """Of every step its cells, a pair per checkout: the least of the rounds, in which checkouts take turns."""
    found: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    for _, step, place in product(range(rounds), steps, packages):
        found.setdefault((step, place), []).append(_in_process(step, place, folder, options.tiny))
    least = {key: [min(values) for values in zip(*runs, strict=True)] for key, runs in found.items()}
    return {
        step: [cell for place in packages for cell in (f"{least[step, place][0]:.1f}", f"{least[step, place][1]:,.0f}")]
        for step in steps
    }


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


def _bare(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    """TransformerLens' bridge around Hugging Face's model, nothing checked and no weight read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from persona_circuits.circuit.model.unloaded import left_unloaded

    with left_unloaded():
        from transformer_lens.model_bridge import TransformerBridge

    def load() -> object:
        name = str(folder / "model")
        network = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="eager")
        how = {"tokenizer": AutoTokenizer.from_pretrained(name), "device": "cpu", "dtype": torch.float32}
        return TransformerBridge.boot_transformers(name, hf_model=network, **how)

    return load


def _run_once(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    """The same, and a pass of the tokens that the check takes: the weights are read from the file then."""
    import torch

    from persona_circuits.circuit.model.model import trial_run

    load = _bare(folder, sizes)

    def run() -> object:
        bridge: Any = load()
        tokens, _ = trial_run(bridge.original_model, torch.device("cpu"))
        with torch.no_grad():
            return bridge.original_model(tokens)

    return run


def _checked(folder: Path, sizes: dict[str, int]) -> Callable[[], object]:
    from persona_circuits.circuit.model import load_model

    _bare(folder, sizes)  # for what it imports
    return lambda: load_model(folder / "model")


Steps = dict[str, tuple[str, Callable[[Path, dict[str, int]], Callable[[], object]]]]
FILES: Steps = {
    "pairs": ("read {pairs:,} pairs and check them against a tokenizer", _check_pairs),
    "read": ("read EAP-IG's JSON, {layers} layers of {heads} heads", _read),
    "validate": ("check a circuit.json of {edges:,} edges", _validate),
    "compare": ("compare two circuits of {edges:,} edges, {draws} draws", _compare),
    "export": ("write EAP-IG's JSON, {export} layers of {export} heads", _export),
}
LOADS: Steps = {
    "bare": ("Hugging Face's model in TransformerLens' bridge, nothing checked", _bare),
    "run": ("the same and one pass of 16 tokens, which reads the weights", _run_once),
    "checked": ("`load_model`, with the runs of its check", _checked),
}
STEPS = FILES | LOADS
ROUNDS = 5


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


def _in_process(step: str, packages: Path, folder: Path, tiny: bool) -> tuple[float, float]:
    """Seconds and megabytes of a step with these packages."""
    code = [sys.executable, str(Path(__file__).resolve()), "--step", step, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*code, *(["--tiny"] if tiny else [])], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    print(f"{packages.name}: {step}: {seconds:.1f} s, {megabytes:.0f} MB", file=sys.stderr)
    return seconds, megabytes


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
    parser.add_argument("--model", type=Path, help="a model's folder: what it costs to load, in the place of the files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--tiny", action="store_true", help="small files, nothing is written")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
