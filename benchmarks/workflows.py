"""The pages of docs/workflows: every ``sh`` fence is run, and the ``text`` fence after it is what it printed.

python benchmarks/workflows.py docs/workflows/collapse.md …

Commands run at the repository's root, one shell for each fence, with ``persona-circuits`` as this checkout has it. A
fence that fails ends the run with what it printed, and its page stays as it was.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FENCE = re.compile(r"^```sh\n(?P<code>.*?)^```\n(?:\n```text\n.*?^```\n)?", re.DOTALL | re.MULTILINE)
QUIET = {"COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


class FenceError(Exception):
    """A fence failed; the message holds its code and what it printed."""


def filled(page: str, run: Callable[[str], str]) -> str:
    """The page with what each of its ``sh`` fences prints after it, in a ``text`` fence."""

    def replaced(match: re.Match[str]) -> str:
        code = match["code"]
        printed = run(code).strip("\n")
        if "```" in printed:
            raise FenceError(f"the output would end its own fence:\n{code}")
        shown = f"\n```text\n{printed}\n```\n" if printed.strip() else ""
        return f"```sh\n{code}```\n{shown}"

    return FENCE.sub(replaced, page)


def in_shell(code: str) -> str:
    """What a fence prints on standard output, in a shell that stops at the first error."""
    start = f"persona-circuits() {{ '{sys.executable}' '{ROOT / 'cli.py'}' \"$@\"; }}\nset -e\n"
    done = subprocess.run(
        ["bash", "-c", start + code], cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True
    )
    if done.returncode:
        raise FenceError(f"exit code {done.returncode} of:\n{code}\n{done.stdout}\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the pages in; 1 if a fence fails."""
    from persona_circuits.circuit.storage import write_text

    parser = argparse.ArgumentParser(description="Run the commands of pages and put what they print beneath them.")
    parser.add_argument("pages", nargs="+", type=Path)
    for path in parser.parse_args(arguments).pages:
        try:
            text = filled(path.read_text("utf-8"), in_shell)
        except FenceError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
        write_text(text, path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
