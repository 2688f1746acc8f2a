"""Quantised models in GGUF files: the host library reads and dequantises them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import ModelError, first_line
from persona_circuits.circuit.model.origin import Origin, sha256_of

__all__ = ["as_dense", "check_gguf", "check_reader", "gguf_in", "gguf_refusal", "origin_of_gguf", "without_bars"]

MAGIC = b"GGUF"


def gguf_in(name: str) -> Path | None:
    """The GGUF file that a model's name says: the file itself, or the one in a folder without other weights.

    Raises:
        ModelError: there is no such file, or a folder holds several.
    """
    place = Path(name)
    if name.lower().endswith(".gguf") and not place.is_dir():
        if not place.is_file():
            raise ModelError(f"there is no file {name}; give a GGUF file, a Hugging Face folder or a hub name")
        return place
    if not place.is_dir() or any(place.glob("*.safetensors*")):
        return None
    files = sorted(path for path in place.iterdir() if path.suffix.lower() == ".gguf")
    if len(files) > 1:
        raise ModelError(f"model folder {name} holds {len(files)} GGUF files; give one of them, such as {files[0]}")
    return files[0] if files else None


def check_gguf(path: Path) -> None:
    """Look at a GGUF file's head before the host library reads all of it.

    Raises:
        ModelError: the package that reads it is not there, or it is no GGUF file or a damaged one.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or first_line(error)})") from error
    if head != MAGIC:
        raise ModelError(f"{path} is no GGUF file, as it does not begin with GGUF; fetch it again")
    check_reader(path)
    _metadata(path)


def check_reader(path: str | Path) -> None:
    """Look for the package that reads GGUF files.

    Raises:
        ModelError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{path} is read with the package gguf, which is not installed; pip install gguf")


def gguf_refusal(path: Path) -> str | None:
    """Why a file that the host library failed on is not read; None where it is not for its architecture."""
    known, own = _architectures(), str(_metadata(path)["general.architecture"])
    if own in known:
        return None
    return (
        f"{path} holds a model of the architecture {own!r}, which transformers does not read from GGUF; it reads "
        f"{', '.join(sorted(known))}: give the Hugging Face folder that the file was made from"
    )


def origin_of_gguf(path: Path) -> Origin:
    """The file's hash, and the quantisation that most of its weights have.

    Raises:
        ModelError: it cannot be read.
    """
    from gguf import LlamaFileType as Kind

    kind = _metadata(path).get("general.file_type")
    try:
        name = Kind(int(kind)).name if kind is not None else "of an unknown kind"
    except (TypeError, ValueError):
        name = f"kind {kind}"
    return Origin(path.name, sha256_of(path), name.removeprefix("MOSTLY_").removeprefix("ALL_"))


def as_dense() -> dict[str, Any]:
    """Options that make the host library dequantise the weights and not compute with quantised blocks."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """The host library's reader of GGUF draws a bar that its own switch does not stop."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _metadata(path: Path) -> dict[str, Any]:
    from transformers.integrations.gguf import read_gguf_metadata

    try:
        return dict(read_gguf_metadata(str(path))[0])
    except Exception as error:  # of a damaged file anything may come
        raise ModelError(f"{path} is damaged or no GGUF file ({first_line(error)}); fetch it again") from error


def _architectures() -> set[str]:
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"}
