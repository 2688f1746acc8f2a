"""The one writing module: whole or not at all, whatever stands in the way."""

import ast
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT
from tests_disks import mounted

from persona_circuits.circuit.errors import WriteError
from persona_circuits.circuit.storage import (
    PREFIX,
    append,
    check_output_file,
    check_output_folder,
    replace_files,
    replace_folder,
    settle,
    working_folder,
    write_bytes,
    write_json,
    write_text,
)
from persona_circuits.circuit.storage import writing as storage

FILES = {"a.json": b"1", "b.csv": b"2", "c.png": b"3"}


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def fill(folder, mark=b"", files=FILES):
    with replace_folder(folder) as staging:
        for name, data in files.items():
            (staging / name).write_bytes(data + mark)


def every_name(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


# --- places --------------------------------------------------------------------------------


def test_all_that_is_written_lies_in_the_folder_itself(tmp_path, monkeypatch):
    """Its parent may not be writable, and may lie on another file system."""
    made = []
    real = storage.os.open, Path.mkdir
    monkeypatch.setattr(storage.os, "open", lambda path, *how: made.append(Path(path)) or real[0](path, *how))
    monkeypatch.setattr(Path, "mkdir", lambda self, *how, **more: made.append(self) or real[1](self, *how, **more))
    (tmp_path / "out").mkdir()
    made.clear()
    fill(tmp_path / "out")
    assert made
    assert all(path == tmp_path / "out" or tmp_path / "out" in path.parents for path in made)


def test_a_mount_point_and_a_link_to_another_file_system(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk"):
        fill(tmp_path / "disk")
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        fill(tmp_path / "link", b"x", {**FILES, "d.md": b"4"})
        assert content(tmp_path / "disk") == {name: data + b"x" for name, data in {**FILES, "d.md": b"4"}.items()}
        assert (tmp_path / "link").is_symlink()
        (tmp_path / "file.json").symlink_to(tmp_path / "disk" / "file.json")
        (tmp_path / "disk" / "file.json").write_text("old")
        check_output_file(tmp_path / "file.json")
        write_json(1, tmp_path / "file.json")
        assert (tmp_path / "disk" / "file.json").read_text() == "1\n"
        assert (tmp_path / "file.json").is_symlink()


BAD_FOLDERS = {
    "file": ("a file where the folder goes", "it is a file"),
    "file/below": ("a file above it", "file is a file"),
    "dangling": ("a link that leads nowhere", "is a link to .*, which does not exist"),
    "dangling/below": ("below such a link", "is a link to .*, which does not exist"),
    "n" * 256: ("a long name", "File name too long"),
    "new/" + "é" * 128: ("a long name in bytes", "File name too long"),
    "taken": ("a folder where a file goes", "circuit.json in it is a folder"),
}


def places(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "taken" / "circuit.json").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")


@pytest.mark.parametrize("name", BAD_FOLDERS, ids=[says for says, _ in BAD_FOLDERS.values()])
def test_a_folder_that_cannot_be_written_is_named_before_work(tmp_path, name):
    places(tmp_path)
    before = every_name(tmp_path)
    with pytest.raises(WriteError, match=BAD_FOLDERS[name][1]) as caught:
        check_output_folder(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert PREFIX not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert every_name(tmp_path) == before


@pytest.mark.parametrize("name", ["", "."])
def test_the_working_folder_has_to_be_named(name):
    with pytest.raises(WriteError, match="working folder itself"):
        check_output_folder(name)


BAD_FILES = {
    "folder": ("a folder where the file goes", "it is a folder"),
    "pipe": ("a pipe", "no ordinary file"),
    "dangling": ("a link that leads nowhere", "is a link to .*, which does not exist"),
    "dangling/x": ("below such a link", "is a link to .*, which does not exist"),
    "none/x": ("no folder", "there is no folder .*make its folder"),
    "file/x": ("a file above it", "file is a file"),
    "n" * 256: ("a long name", "File name too long; .*255 bytes"),
}


@pytest.mark.parametrize("name", BAD_FILES, ids=[says for says, _ in BAD_FILES.values()])
def test_a_file_that_cannot_be_written_is_named_before_work(tmp_path, name):
    places(tmp_path)
    before = every_name(tmp_path)
    with pytest.raises(WriteError, match=BAD_FILES[name][1]) as caught:
        check_output_file(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert PREFIX not in str(caught.value)
    assert every_name(tmp_path) == before


@pytest.mark.parametrize("name", ["folder", "pipe", "none/x", "file/x", "n" * 256])
def test_writing_there_all_the_same_changes_nothing(tmp_path, name):
    places(tmp_path)
    before = every_name(tmp_path)
    with pytest.raises(WriteError, match=re.escape(str(tmp_path / name)[:60])):
        write_text("new", tmp_path / name)
    assert every_name(tmp_path) == before
    assert (tmp_path / "pipe").is_fifo()


def test_names_as_long_as_they_may_be(tmp_path):
    name = "n" * 250 + ".json"
    check_output_file(tmp_path / name)
    write_json(1, tmp_path / name)
    check_output_folder(tmp_path / ("d" * 255))
    fill(tmp_path / ("d" * 255))
    assert (tmp_path / name).read_text() == "1\n"
    assert content(tmp_path / ("d" * 255)) == FILES


def test_a_file_in_a_folder_that_will_be_made(tmp_path):
    check_output_file(tmp_path / "new" / "deep" / "x.json", makes_folder=True)
    assert every_name(tmp_path) == []


def test_a_folder_in_the_place_of_one_file_keeps_all_the_others(tmp_path):
    fill(tmp_path / "out")
    (tmp_path / "out" / "b.csv").unlink()
    (tmp_path / "out" / "b.csv").mkdir()
    before = content(tmp_path)
    with pytest.raises(WriteError, match=r"cannot write .*out: b\.csv in it is a folder"):
        fill(tmp_path / "out", b"new")
    assert content(tmp_path) == before


def test_a_read_only_disk_is_said_before_work(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk") as remount:
        fill(tmp_path / "disk" / "run")
        remount("ro")
        for check in (check_output_folder, check_output_file):
            with pytest.raises(WriteError, match="Read-only file system; choose a place that can be written"):
                check(tmp_path / "disk" / "new")
        with pytest.raises(WriteError, match=r"disk/run/a\.json: Read-only"):
            write_text("x", tmp_path / "disk" / "run" / "a.json")
        with pytest.raises(WriteError, match=r"cannot write .*disk/run: Read-only"):
            fill(tmp_path / "disk" / "run")
        assert content(tmp_path / "disk" / "run") == FILES


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, number):
    """Root may write where permission bits forbid it, so the refusal is put in."""

    def refuse(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(storage.os, "open", refuse)
    for act in (check_output_folder, check_output_file, lambda place: write_text("x", place)):
        with pytest.raises(WriteError, match=f"{os.strerror(number)}; choose a place") as caught:
            act(tmp_path / "x.json")
        assert str(tmp_path / "x.json") in str(caught.value)
        assert PREFIX not in str(caught.value)


def test_permissions_are_what_the_umask_leaves(tmp_path):
    code = """
        import os, sys
        from persona_circuits.circuit.storage import replace_folder, write_text
        os.umask(int(sys.argv[1], 8))
        write_text("x", sys.argv[2] + "/file")
        with replace_folder(sys.argv[2] + "/folder") as staging:
            write_text("x", staging / "file")
    """
    for umask in ("077", "002"):
        (tmp_path / umask).mkdir()
        command = [sys.executable, "-c", textwrap.dedent(code), umask, str(tmp_path / umask)]
        subprocess.run(command, cwd=ROOT, check=True)
        for path in ("file", "folder/file"):
            assert (tmp_path / umask / path).stat().st_mode & 0o777 == 0o666 & ~int(umask, 8)


# --- full disks ----------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_there(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", size="64k"):
        fill(tmp_path / "disk" / "run")
        write_text("old", tmp_path / "disk" / "x.json")
        before = every_name(tmp_path)
        with pytest.raises(WriteError, match=r"disk/x\.json: No space left on device; free some space"):
            write_bytes(bytes(100_000), tmp_path / "disk" / "x.json")
        with pytest.raises(WriteError, match=r"disk/run/b\.csv: No space left on device"):
            fill_through_the_module(tmp_path / "disk" / "run")
        with pytest.raises(WriteError, match="disk/run: No space left on device"):
            fill(tmp_path / "disk" / "run", bytes(30_000))
        assert every_name(tmp_path) == before
        assert content(tmp_path / "disk" / "run") == FILES
        assert (tmp_path / "disk" / "x.json").read_text() == "old"


def fill_through_the_module(folder):
    with replace_folder(folder) as staging:
        write_text("new", staging / "a.json")
        write_bytes(bytes(100_000), staging / "b.csv")


def test_a_full_disk_is_said_before_work(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", size="16k"):
        with contextlib.suppress(OSError):
            (tmp_path / "disk" / "large").write_bytes(bytes(100_000))
        for check in (check_output_folder, check_output_file):
            with pytest.raises(WriteError, match="No space left on device; free some space"):
                check(tmp_path / "disk" / "new")


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    (tmp_path / "disk").mkdir()
    path = tmp_path / "disk" / "journal"
    with mounted(tmp_path / "disk", size="16k"), path.open("ab", buffering=0) as file:
        line = b"x" * 5000 + b"\n"
        for _ in range(3):
            append(file, line, path)
        with pytest.raises(WriteError, match="disk/journal: No space left on device"):
            append(file, line, path)
        assert path.read_bytes() == line * 3


# --- kills ---------------------------------------------------------------------------------

WRITER = """
    import os, sys, time
    from persona_circuits.circuit.storage import writing as storage
    n, place = int(sys.argv[1]), sys.argv[2]
    real = os.replace
    count = 0
    def slow(a, b):
        global count
        count += 1
        if count == n:
            print("now", flush=True)
            time.sleep(60)
        real(a, b)
    storage.os.replace = slow
    with storage.replace_folder(place) as staging:
        for name in ("a.json", "b.csv", "c.png"):
            (staging / name).write_bytes(b"new")
            if n == 0:
                print("now", flush=True)
                time.sleep(60)
"""


def writer(n, folder):
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(n), str(folder)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "now\n"
    return child


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_what_a_killed_process_left_is_finished_or_removed(tmp_path, n):
    """``n`` is the rename at which it dies; 0: while files are being made."""
    out = tmp_path / "out"
    fill(out)
    child = writer(n, out)
    settle(out)  # of a living process: nothing is touched
    assert [path for path in out.iterdir() if path.name.startswith(PREFIX)]
    child.kill()
    child.wait()
    check_output_folder(out)
    assert content(out) == (FILES if n == 0 else dict.fromkeys(FILES, b"new"))
    assert every_name(out) == sorted(FILES)


def test_a_signal_while_files_move_waits_until_they_are_there(tmp_path):
    code = """
        import os, signal, sys
        from persona_circuits.circuit.storage import writing as storage
        real = os.replace
        def loud(a, b):
            os.kill(os.getpid(), signal.SIGINT)
            real(a, b)
        storage.os.replace = loud
        try:
            with storage.replace_folder(sys.argv[1]) as staging:
                for name in ("a.json", "b.csv"):
                    (staging / name).write_bytes(b"new")
        except KeyboardInterrupt:
            sys.exit(7)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")], cwd=ROOT, check=False)
    assert done.returncode == 7
    assert content(tmp_path / "out") == {"a.json": b"new", "b.csv": b"new"}


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / ".out-abcdefgh").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / ".out-abcdefgh")
    settle(tmp_path)
    assert every_name(tmp_path) == [".out-abcdefgh", f"{PREFIX}link"]


def test_a_temporary_name_cannot_be_foreseen_and_follows_no_link(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    names = iter(["taken", "free"])
    monkeypatch.setattr(storage.secrets, "token_hex", lambda n: next(names))
    (tmp_path / f"{PREFIX}taken.svg").symlink_to(tmp_path / "mine")
    with contextlib.suppress(WriteError):
        write_text("new", tmp_path / "x.svg")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_rename_that_fails_takes_the_others_back(tmp_path, monkeypatch):
    fill(tmp_path / "out")
    (tmp_path / "out" / "sub").mkdir()
    (tmp_path / "out" / "sub" / "old").write_text("old")
    (tmp_path / "out" / "b.csv").unlink()
    before = content(tmp_path / "out")
    real = storage.os.replace

    def refuse(a, b):
        if Path(b) == tmp_path / "out" / "z":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(a))
        real(a, b)

    monkeypatch.setattr(storage.os, "replace", refuse)

    def write():
        with replace_folder(tmp_path / "out") as staging:
            for name in ("a.json", "b.csv", "z"):
                (staging / name).write_bytes(b"new")
            (staging / "sub").mkdir()
            (staging / "sub" / "new").write_text("new")

    with pytest.raises(WriteError, match="Operation not permitted"):
        write()
    assert content(tmp_path / "out") == before


def test_a_folder_takes_the_place_of_a_whole_one(tmp_path):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "old").write_text("old")
    with replace_folder(tmp_path / "out") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "new").write_text("new")
    assert every_name(tmp_path) == ["out", "out/sub", "out/sub/new"]


def test_files_of_several_folders_change_together(tmp_path):
    paths = [tmp_path / "one" / "a", tmp_path / "one" / "b", tmp_path / "two" / "c"]

    def write(fail):
        with replace_files(*paths) as staged:
            for path in staged:
                path.write_text("new")
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(True)
    assert every_name(tmp_path) == []
    write(False)
    assert content(tmp_path) == {"one/a": b"new", "one/b": b"new", "two/c": b"new"}


def test_a_working_folder_goes_if_nothing_is_left_in_it(tmp_path):
    with working_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert every_name(tmp_path) == []
    with working_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("")
    assert every_name(tmp_path) == ["a", "a/b", "a/b/x"]


# --- one module ----------------------------------------------------------------------------

ALLOWED = {
    "writing.py",  # storage itself
    "process.py",  # a file without a name, for another program's output
    "font.py",  # fontconfig's settings, in a temporary folder of the system
    "second_opinion.py",  # rows into a staging folder
    "circuits.py",  # of circuit.io: a large file, into storage's temporary one
    "fetching.py",  # parts joined, into storage's temporary file
    "journal.py",  # of responses, appended to by storage.append
}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            mode = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            owner = getattr(getattr(node.func, "value", None), "id", "")
            yield name, owner, mode


PRODUCT = [path for name in ("circuit", "persona", "models", "metrics") for path in (ROOT / name).rglob("*.py")]


@pytest.mark.parametrize("path", [*PRODUCT, ROOT / "cli.py"], ids=lambda path: "/".join(path.parts[-2:]))
def test_no_other_module_writes(path):
    found = set()
    for name, owner, mode in calls(path):
        if name in ("save_file", "to_csv", "write_image", "write_html", "mkstemp", "NamedTemporaryFile"):
            found.add(name)
        if name in ("open", "fdopen") and any(set(text) & set("wax+") and len(text) <= 3 for text in mode):
            found.add(name)
        if name in ("write_text", "write_bytes") and owner not in ("", "storage"):
            found.add(name)
        if (name, owner) in (("replace", "os"), ("rename", "os"), ("rename", "shutil"), ("move", "shutil")):
            found.add(name)
    assert not found or path.name in ALLOWED, found


def test_json_that_is_no_json_leaves_the_file(tmp_path):
    write_json({"x": 1}, tmp_path / "x.json")
    with pytest.raises(ValueError, match="Out of range"):
        write_json({"x": float("inf")}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"x": 1}
    assert every_name(tmp_path) == ["x.json"]


def test_signals_are_as_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with storage._undisturbed():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
