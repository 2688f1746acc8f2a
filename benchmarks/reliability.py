"""Kills and disks: what the true commands leave when they are stopped at random moments, and on disks that refuse.

python benchmarks/reliability.py --page docs/reliability.md     60 kills and all disks; writes the page's tables

One warm process (``--serve``) imports everything and forks a child for every run of a command, so that a run takes
as long as its work and not as long as loading torch. Half of the kills come while files are moved into place: there
the child's renames are slowed down. The program itself has no switch for any of this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TINY, PAIRS = ROOT / "tests" / "data" / "tiny-gpt2", ROOT / "tests" / "data" / "tiny_pairs.json"
SLOW = 0.15  # seconds before each rename
HIDDEN = ".persona-circuits-"
WARNING = "before the search: "  # discover says on a few pairs that they are few
PASSING = ("journal.jsonl", "acdc.state")  # grow while a command works; a rerun goes on from them


@dataclass(frozen=True)
class Command:
    """A command to stop: how it makes the old content and the new, run in a folder of its own that holds ``run``."""

    name: str
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Kill:
    """One kill: when, by which signal, what it found and left."""

    command: str
    number: int
    writing: bool
    code: int
    left: str  # old, new, or the part that was moved before SIGKILL came: then the next start moves the rest
    says: str


def commands(url: str) -> tuple[Command, ...]:
    """The commands that are stopped; ``url`` is an endpoint on loopback."""
    model = ("--model", str(TINY), "--pairs", str(PAIRS), "--n-random", "2")
    texts = ("--personas", "personas.jsonl", "--questions", "questions.jsonl")
    build = ("pairs", *texts, "--template", "raw", "--file", "out/p.jsonl")
    ask = ("respond", *texts, "--endpoint-model", "toy", "--base-url", url, "--api-key", "k", "--out", "out")
    return (
        Command("pairs", (*build, "--max-pairs", "2"), (*build, "--max-pairs", "40")),
        Command("export", ("export", "run", "--to", "nodes", "--file", "out/e.json"),
                ("export", "run", "--to", "eap-ig", "--file", "out/e.json")),
        Command("respond", (*ask, "--max-questions", "1"), (*ask, "--max-questions", "3")),
        Command("discover", ("discover", *model, "--threshold", "0.2", "--out", "out"),
                ("discover", *model, "--threshold", "0.05", "--out", "out")),
        Command("evaluate", ("evaluate", "out", "--only-faithfulness", "--n-random", "2"),
                ("evaluate", "out", "--only-faithfulness", "--n-random", "3")),
    )  # fmt: skip


class Server:
    """The warm process; ``start`` runs a command in a child of it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=ROOT,
        )  # fmt: skip
        self._told()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def run(self, arguments: Sequence[str], place: Path, *, slow: float = 0.0, stop: Any = None) -> tuple[int, str]:
        """The exit code (minus the signal, if one ended it) and what it said on standard error."""
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as errors:
            asked = {"arguments": [*arguments], "place": str(place), "slow": slow, "errors": errors.name}
            assert self.process.stdin is not None
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            pid = self._told()
            if stop is not None:
                _wait_until(errors.name + ".moving" if slow else None, stop[0])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, stop[1])
            print("wait", file=self.process.stdin, flush=True)
            code = os.waitstatus_to_exitcode(self._told())
            Path(errors.name + ".moving").unlink(missing_ok=True)
            return code, errors.read()

    def _told(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def _wait_until(file: str | None, seconds: float) -> None:
    """Wait so many seconds, counted from when the file is there."""
    until = time.monotonic() + 60
    while file is not None and not os.path.exists(file) and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(seconds)


def serve() -> None:
    """Fork a child for each line of standard input, say its id, and after ``wait`` its status."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import openai.types.chat  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import torch

    from persona_circuits import cli  # noqa: F401
    from persona_circuits.circuit.discovery import search as discovery  # noqa: F401
    from persona_circuits.circuit.discovery import writing as discovery_files  # noqa: F401
    from persona_circuits.circuit.drawing import render as draw  # noqa: F401
    from persona_circuits.circuit.figures import paper  # noqa: F401
    from persona_circuits.circuit.model import load_model
    from persona_circuits.circuit.peers import mib  # noqa: F401
    from persona_circuits.circuit.task import MODEL
    from persona_circuits.persona.data import load_tokenizer
    from persona_circuits.persona.pairs import build as pairs  # noqa: F401
    from persona_circuits.persona.responses import generate as responses  # noqa: F401
    from persona_circuits.persona.responses import report as response_files  # noqa: F401

    load_tokenizer(MODEL)  # what these import late is there for every child
    load_model(TINY)
    torch.set_num_threads(1)
    print(0, flush=True)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitpid(pid, 0)[1], flush=True)


def _child(asked: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    os.chdir(asked["place"])
    with open(asked["errors"], "w") as errors, open(os.devnull, "r+") as none:
        for stream, number in ((none, 0), (none, 1), (errors, 2)):
            os.dup2(stream.fileno(), number)
    from persona_circuits.circuit.storage import writing as storage

    real = os.replace

    def slow(*where: Any) -> None:
        Path(asked["errors"] + ".moving").touch()
        time.sleep(asked["slow"])
        real(*where)

    if asked["slow"]:
        storage.os.replace = slow
    sys.argv = ["persona-circuits", *asked["arguments"]]
    code: Any = 1
    try:
        from persona_circuits import cli

        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def kills(n: int, place: Path, *, seed: int = 0, names: Sequence[str] = ()) -> Iterator[Kill]:
    """Kill the commands ``n`` times in turn; every promise of docs/reliability.md is checked each time.

    Raises
    ------
    AssertionError
        A promise is broken.
    """
    from tests_loopback import serving

    draw = random.Random(seed)
    server = Server()
    try:
        with serving() as endpoint:
            endpoint.plan = lambda text, turn: 0.01
            chosen = [one for one in commands(endpoint.url) if not names or one.name in names]
            subjects = [_prepared(one, server, place / one.name) for one in chosen]
            for turn in range(n):
                subject = subjects[turn % len(subjects)]
                number = SIGNALS[turn // len(subjects) % len(SIGNALS)]
                yield subject.kill(number, draw, writing=draw.random() < 0.5)
    finally:
        server.close()


def _prepared(command: Command, server: Server, place: Path) -> Subject:
    """Run the command for its old and its new content."""
    work = place / "work"
    (work / "out").mkdir(parents=True)
    for name in ("personas.jsonl", "questions.jsonl"):
        lines = (ROOT / "datasets" / name).read_text("utf-8").splitlines(keepends=True)
        (work / name).write_text("".join(lines[:4]), encoding="utf-8")
    model = ("--model", str(TINY), "--pairs", str(PAIRS), "--threshold", "0.1", "--n-random", "2")
    if command.name == "export":
        _must(server, ("discover", *model, "--out", "run"), work)
    if command.name == "evaluate":
        _must(server, ("discover", *model, "--out", "out"), work)
    _must(server, command.old, work)
    shutil.copytree(work, place / "before")
    old = visible(work / "out")
    begun = time.monotonic()
    _must(server, command.new, work)
    took = time.monotonic() - begun
    new = visible(work / "out")
    assert old != new, f"{command.name}: old and new content are the same"
    return Subject(command, server, place, old, new, took)


def _must(server: Server, arguments: Sequence[str], place: Path, *, slow: float = 0.0) -> None:
    code, says = server.run(arguments, place, slow=slow)
    assert code == 0, f"{arguments}: {code}: {says}"


@dataclass(frozen=True)
class Subject:
    """A command with its contents and the seconds that it takes."""

    command: Command
    server: Server
    place: Path
    old: dict[str, bytes]
    new: dict[str, bytes]
    took: float

    def kill(self, number: int, draw: random.Random, *, writing: bool) -> Kill:
        """Kill one run, look at what is there, run again, look once more."""
        work = self.place / "work"
        shutil.rmtree(work)
        shutil.copytree(self.place / "before", work)
        moment = draw.uniform(0, SLOW * (len(self.new) + 1) if writing else self.took)
        how = {"slow": SLOW if writing else 0.0, "stop": (moment, number)}
        code, says = self.server.run(self.command.new, work, **how)
        left = self._left(work / "out", number)
        about = f"{self.command.name}, signal {number} after {moment:.3f} s: "
        # a signal may come before the command has begun, or find it ended
        assert code in (0, -number, *(() if number == signal.SIGKILL else (128 + number, 1))), f"{about}{code}: {says}"
        assert "Traceback" not in says, about + says
        last = says.rstrip().rpartition("\n")[2]  # a warning of the search may stand before it
        assert code != 128 + number or last.startswith("stopped: "), about + says
        ours = [line for line in says.splitlines() if line.strip() and not line.startswith(WARNING)]
        assert len(ours) <= 1, about + says
        assert left, f"{about}neither the old nor the new content: {sorted(visible(work / 'out'))}"
        again, said = self.server.run(self.command.new, work)
        assert again == 0, f"{about}rerun: {again}: {said}"
        assert visible(work / "out") == self.new, f"{about}the rerun's files differ"
        assert not [*work.rglob(f"{HIDDEN}*")], f"{about}hidden files are left after the rerun"
        return Kill(self.command.name, number, writing, code, left, says)

    def _left(self, out: Path, number: int) -> str:
        found = visible(out)
        for name, content in (("old", self.old), ("new", self.new)):
            if found == content:
                return name
        if number != signal.SIGKILL:
            return ""
        from persona_circuits.circuit.storage import settle

        copy = out.with_name("copy")
        shutil.copytree(out, copy)
        settle(copy)
        complete = visible(copy) == self.new
        shutil.rmtree(copy)
        return "part" if complete else ""


def visible(folder: Path) -> dict[str, bytes]:
    """The files of a folder that are no passing ones, by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in PASSING]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if HIDDEN not in str(path)}


def kill_table(found: Sequence[Kill]) -> str:
    """A row per command."""
    from persona_circuits.circuit.table import markdown_table

    columns = (
        "command",
        "kills",
        *("SIGKILL", "SIGTERM", "SIGINT"),
        "of them while files moved",
        "left the old files",
        "the new ones",
        "part of the new, moved on by the next start",
        "reruns identical",
        "hidden files after",
    )
    rows = []
    for name in dict.fromkeys(one.command for one in found):
        own = [one for one in found if one.command == name]
        counts = [sum(one.number == number for one in own) for number in SIGNALS]
        left = [sum(one.left == kind for one in own) for kind in ("old", "new", "part")]
        shown = (len(own), *counts, sum(one.writing for one in own), *left, len(own), 0)
        rows.append((f"`{name}`", *map(str, shown)))
    totals = [sum(int(row[i]) for row in rows) for i in range(1, len(columns))]
    return markdown_table(columns, [*rows, ("all", *map(str, totals))])


def disks(place: Path, *, names: Sequence[str] = ()) -> Iterator[tuple[str, str, str]]:
    """Every command on every disk: its name, the disk's, and what came of it.

    Raises
    ------
    AssertionError
        A promise is broken.
    """
    from tests_loopback import serving

    server = Server()
    try:
        with serving() as endpoint:
            for command in commands(endpoint.url):
                if not names or command.name in names:
                    subject = _prepared(command, server, place / command.name)
                    for name, trial in DISKS.items():
                        try:
                            yield command.name, name, trial(subject)
                        except Unable as error:
                            yield command.name, name, f"skipped: {error}"
    finally:
        server.close()


class Unable(Exception):
    """This machine does not allow the trial."""


@contextlib.contextmanager
def mounted(folder: Path, *how: str) -> Iterator[None]:
    """A file system on the folder for the time of the block."""
    try:
        done = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unable("there is no mount") from error
    if done.returncode:
        raise Unable("mounting is not allowed")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def _on_disk(subject: Subject, size: str = "64m") -> Iterator[Path]:
    """The command's folder with ``out`` on a disk of its own."""
    work, out = subject.place / "work", subject.place / "work" / "out"
    shutil.rmtree(work)
    shutil.copytree(subject.place / "before", work)
    shutil.rmtree(out)
    out.mkdir()
    with mounted(out, "-t", "tmpfs", "-o", f"size={size}", "persona-circuits-trial"):
        shutil.copytree(subject.place / "before" / "out", out, dirs_exist_ok=True)
        yield work


def on_mount_point(subject: Subject) -> str:
    """``out`` is a mount point."""
    with _on_disk(subject) as work:
        _must(subject.server, subject.command.new, work)
        assert visible(work / "out") == subject.new
        assert not [*work.rglob(f"{HIDDEN}*")]
    return "written"


def through_link(subject: Subject) -> str:
    """``out`` is a link to another disk."""
    with _on_disk(subject) as work:
        other = subject.place / "linked"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(work, other, ignore=lambda folder, names: ["out"] if folder == str(work) else [])
        (other / "out").symlink_to(work / "out")
        _must(subject.server, subject.command.new, other)
        assert (other / "out").is_symlink()
        assert visible(work / "out") == subject.new
    return "written"


def full_at_once(subject: Subject) -> str:
    """There is no room from the start: it is said before the work."""
    return _refused(subject, free=0, says="No space left on device")


def full_in_writing(subject: Subject) -> str:
    """Room for one page: enough for the check, too little for the results."""
    return _refused(subject, free=1, says="No space left on device")


def _refused(subject: Subject, *, free: int, says: str) -> str:
    with _on_disk(subject, "16m") as work:
        keep = work / "out" / "keep"
        keep.write_bytes(bytes(4096 * free))
        with contextlib.suppress(OSError), (work / "out" / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)) == 4096:
                pass
        keep.unlink()
        _check_refused(subject, work, says)
    return "refused, old files kept"


def read_only(subject: Subject) -> str:
    """The disk is mounted read-only: it is said before the work."""
    with _on_disk(subject) as work:
        subprocess.run(["mount", "-o", "remount,ro", str(work / "out")], check=True)
        _check_refused(subject, work, "Read-only file system")
    return "refused, old files kept"


def _check_refused(subject: Subject, work: Path, says: str) -> None:
    names = sorted(path.name for path in (work / "out").iterdir())
    code, said = subject.server.run(subject.command.new, work)
    assert code == 2, f"{subject.command.name}: {code}: {said}"
    assert says in said, said
    assert said.startswith("error: "), said
    assert "out" in said, said
    assert HIDDEN not in said, said
    assert len(said.strip().splitlines()) == 1, said
    found = {name: data for name, data in visible(work / "out").items() if name != "filler"}
    assert found == subject.old, f"{subject.command.name}: {sorted(found)}"
    assert sorted(p.name for p in (work / "out").iterdir() if p.name not in PASSING) == [
        name for name in names if name not in PASSING
    ]


DISKS = {
    "a mount point": on_mount_point,
    "a link to another disk": through_link,
    "a full disk": full_at_once,
    "a disk that fills up": full_in_writing,
    "a read-only disk": read_only,
}


def disk_table(found: Sequence[tuple[str, str, str]]) -> str:
    """A row per disk, a column per command."""
    from persona_circuits.circuit.table import markdown_table

    names = list(dict.fromkeys(name for name, _, _ in found))
    cells = {(disk, name): says for name, disk, says in found}
    rows = [(disk, *(cells[disk, name] for name in names)) for disk in DISKS]
    return markdown_table(("results on", *(f"`{name}`" for name in names)), rows, texts=len(names) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all trials and write the page's tables."""
    parser = argparse.ArgumentParser(description="Kills, disks and broken files, against the true commands.")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--page", type=Path, help="page whose tables are written; printed if left out")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.serve:
        serve()
        return 0
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["kills"] = kill_table([*kills(given.kills, Path(folder) / "kills", seed=given.seed)])
        found["disks"] = disk_table([*disks(Path(folder) / "disks")])
    with contextlib.suppress(ModuleNotFoundError):
        import reliability_fuzz

        found["fuzz"] = reliability_fuzz.table()
    for name, text in found.items():
        if given.page is None:
            print(f"{name}\n\n{text}\n")
            continue
        from tables import replace_section

        replace_section(given.page, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
