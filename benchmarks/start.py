"""What a command costs before and beside its work: every command once, on the shipped model and a few pairs; installs.

    python benchmarks/start.py                          # or: make bench-start
    python benchmarks/start.py --before CHECKOUT        # an older checkout beside this one
    python benchmarks/start.py --only --help,models     # these commands alone

Every command runs in a process of its own on one thread; seconds are the processor's, the least of the rounds, so that
the files are in memory and compiled. Above them stands what the host libraries take to be imported, below which no
command that runs a model can come. Sizes are of the installed files of each package that is there, and whose it is:
a package counts for a requirement of setup.cfg where no other requirement brings it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tables import machine_line, markdown_table, replace_section

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PAIRS, FEW = ROOT / "datasets" / "pairs_test.jsonl", 8
HOST = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel"
IMPORTS = {
    "import torch": "import torch",
    "and Transformers' models": HOST,
    "and TransformerLens' bridge": f"{HOST}; from transformer_lens.model_bridge import TransformerBridge",
}
SHIPPED = "discover (shipped pairs)"
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "discover --help": ("discover", "--help"),
    "models": ("models",),
    SHIPPED: ("discover", "--threshold", "0.003", "--out", "run"),
    "validate": ("validate", "run"),
    "draw": ("draw", "run"),
    "export": ("export", "run", "--to", "graphml"),
    "inspect --pairs": ("inspect", str(ROOT / "models" / "persona-world"), "--pairs", "few.jsonl"),
    "pairs": ("pairs", "--personas", "datasets/personas.jsonl", "--questions", "datasets/questions.jsonl", "--template",
              "datasets/templates.json", "--max-pairs", "8", "--file", "made.jsonl"),
    "discover": ("discover", "--pairs", "few.jsonl", "--out", "few", "--method", "eap", "--n-random", "0", "--force"),
    "evaluate": ("evaluate", "few", "--only-faithfulness", "--n-random", "0", "--no-save"),
    "curves": ("curves", "--pairs", "few.jsonl", "--scorers", "eap", "--out", "curves"),
    "compare": ("compare", "few", "few", "--no-model", "--n-draws", "20"),
    "collapse": ("collapse", "--pairs", "few.jsonl", "--out", "collapse"),
    "explain": ("explain", "--pairs", "few.jsonl", "--out", "explain", "--no-causal"),
    "probe": ("probe", "--pairs", "few.jsonl", "--out", "probe", "--every", "6"),
    "lens": ("lens", "--pairs", "few.jsonl", "--out", "lens"),
    "patch": ("patch", "--pairs", "few.jsonl", "--at", "stream", "--out", "patch"),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, help="another checkout, whose commands are timed beside these")
    parser.add_argument("--only", help="commands, with commas")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(COMMANDS)
    checkouts = [ROOT, *([options.before.resolve()] if options.before else [])]
    rows: list[tuple[object, ...]] = []
    for name, code in IMPORTS.items():
        seconds, size = _least(["-c", code], Path.cwd(), options.rounds)
        rows.append((name, f"{seconds:.1f}", f"{size:.0f}", *[""] * (2 * len(checkouts) - 2)))
    with tempfile.TemporaryDirectory() as folder:
        for root in checkouts:
            _make(Path(folder, root.name), root)
        for name in names:
            cells = []
            for root in checkouts:
                seconds, size = _least([str(root / "cli.py"), *COMMANDS[name]], Path(folder, root.name), options.rounds)
                cells += [f"{seconds:.1f}", f"{size:.0f}"]
            rows.append((f"`{name}`", *cells))
            print(*rows[-1], sep="\t", file=sys.stderr)
    columns = ("what", "CPU s", "MB", *(("CPU s before", "MB before") if options.before else ()))
    tables = markdown_table(columns, rows), markdown_table(("requirement", "packages", "MB", "largest"), installed())
    print("\n\n".join(tables))
    from persona_circuits.circuit.profiling import machine

    line = machine_line({**machine("cpu"), "threads": 1})
    replace_section(PAGE, "start", f"{line}\n\n{tables[0]}\n\n{tables[1]}")
    return 0


def _make(folder: Path, root: Path) -> None:
    """A few pairs, and the data sets, which are named as a user would."""
    folder.mkdir()
    (folder / "datasets").symlink_to(root / "datasets")
    (folder / "few.jsonl").write_text("".join(PAIRS.open().readlines()[:FEW]))


def _least(command: Sequence[str], folder: Path, rounds: int) -> tuple[float, float]:
    """CPU seconds and resident megabytes, the least over the rounds."""
    found = [_once(command, folder) for _ in range(rounds)]
    return min(one[0] for one in found), min(one[1] for one in found)


def _once(command: Sequence[str], folder: Path) -> tuple[float, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)}: {said}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def installed() -> list[tuple[str, str, str, str]]:
    """For every requirement of the project what it alone brings: packages, their size, and the largest of them."""
    wanted = re.search(r"install_requires =\n((?: +\S+\n)+)", (ROOT / "setup.cfg").read_text())
    assert wanted is not None
    own = [_plain(line) for line in wanted[1].split()]
    brought = {name: _closure(name) for name in own}
    rows = []
    for name in own:
        others = {one for other in own if other != name and name not in brought[other] for one in brought[other]}
        alone = {one: _size(one) for one in brought[name] - others - (set(own) - {name})}
        top = sorted(alone, key=lambda one: -alone[one])[:5]
        largest = ", ".join(f"{one} {alone[one]:.0f}" for one in top if alone[one] >= 1)
        rows.append((name, str(len(alone)), f"{sum(alone.values()):.0f}", largest))
    return sorted(rows, key=lambda row: -float(row[2]))


def _closure(name: str, known: frozenset[str] = frozenset()) -> set[str]:
    """The package and all that it requires, as far as it is installed."""
    found, waiting = set[str](), [name]
    while waiting:
        one = waiting.pop()
        try:
            requires = metadata.requires(one) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(one)
        waiting += {_plain(text) for text in requires if "extra ==" not in text} - found
    return found


def _plain(text: str) -> str:
    """The name of a requirement as packages are compared by it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[(]", text.strip())[0]).lower()


def _size(name: str) -> float:
    """Megabytes of a package's files."""
    places = (file.locate() for file in metadata.files(name) or [])
    return sum(os.path.getsize(place) for place in places if os.path.isfile(place)) / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
