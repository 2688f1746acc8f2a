"""What a model's name and folder hold, looked at before and after the host library reads them.

The host library fills what a checkpoint lacks with random numbers, drops what it does not know, and says so
in warnings. Here each of these is an error: a folder that is not what it seems, a key too few or too many.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from persona_circuits.circuit.catalogue import CATALOGUE
from persona_circuits.circuit.errors import ModelError, first_line

__all__ = ["check_folder", "check_keys", "check_place", "check_weights", "lacks_tokenizer", "stored_tensors"]

WANTED = "give a Hugging Face folder or a hub name such as gpt2"
PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+)")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
)
READ = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", *TOKENIZER)
"""Files that are read besides the weights."""
POINTER = b"version https://git-lfs"
PREFIXES = {
    "module.": "parallel training, so save the wrapped model, which is its .module",
    "_orig_mod.": "torch.compile, so save the model that was compiled, which is its ._orig_mod",
    "base_model.model.": "peft, so save what its merge_and_unload() returns",
}
"""What wrappers put before every key, and how to save without it."""
HARMLESS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$")
"""Constants that older checkpoints hold and that the host library computes itself."""


def check_place(name: str) -> bool:
    """Whether a model's name is that of a folder here; what else it is must be a hub name.

    Raises:
        ModelError: it is a file, the address of a page, or a folder that does not exist.
    """
    if not name.strip():
        raise ModelError(f"the model's name is empty; {WANTED}")
    if os.path.isdir(name):
        return True
    if page := PAGE.match(name):
        raise ModelError(f"{name} is the address of a page; {_named_by_page(page[1])}")
    if "://" in name:
        raise ModelError(f"{name} is an address, and models are not read from addresses; {WANTED}")
    if name in CATALOGUE:
        raise ModelError(f"model {name} is not fetched; get it with: persona-circuits get {name}")
    if os.path.isfile(name):
        folder = Path(name).parent
        place = f"the folder that it lies in, {folder}" if (folder / "config.json").is_file() else "a model's folder"
        raise ModelError(f"{name} is a file; give {place}, or a hub name such as gpt2")
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise ModelError(f"model folder {name} does not exist; {WANTED}")
    return False


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Look into a model's folder, reading no weights.

    Raises:
        ModelError: it holds an adapter, no configuration, or files that are empty, pointers or damaged; with
            ``weights`` also where there are none that can be read.
    """
    if adapter := next((file for file in ADAPTER if (folder / file).exists()), None):
        whole = (folder / SINGLE).exists() or (folder / INDEX).exists()
        other = "; to analyse the weights beside it, take the adapter's files away" if whole else ""
        raise ModelError(
            f"model folder {folder} holds a LoRA adapter ({adapter}), which is not applied; merge it into its base "
            f"model (merge_and_unload of peft) and save the result{other}"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {folder} has no config.json; expected a Hugging Face model folder")
    _check_contents(path for pattern in READ for path in sorted(folder.glob(pattern)))
    if weights:
        stored_tensors(folder)


def stored_tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a folder's weights, from the heads of its files.

    Raises:
        ModelError: there are no safetensors, a shard is missing, or a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    files = _weight_files(folder)
    _check_contents(files)
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                shapes |= {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is damaged or no safetensors file ({first_line(error)}); fetch or save it again"
            ) from error
    return shapes


def lacks_tokenizer(folder: Path) -> bool:
    """Whether there is none of the files that tokenizers are made of."""
    return not any(next(folder.glob(pattern), None) for pattern in TOKENIZER)


def check_keys(name: str, network: Any, info: Mapping[str, Any]) -> None:
    """Compare the host library's loading info with the model.

    Raises:
        ModelError: a weight was not in the checkpoint or has another shape there, or the checkpoint holds what is
            not in the model, but for constants and for parts of other modalities than text.
    """
    unused = _not_of_the_text(network)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    surplus = sorted(key for key in info["unexpected_keys"] if not key.startswith(unused) and not HARMLESS.search(key))
    other = sorted(key for key in info["mismatched_keys"] if not key[0].startswith(unused))
    faults = [f"{_some(missing)} of the model not in the checkpoint"] if missing else []
    faults += [f"{_some(surplus)} of the checkpoint not in the model"] if surplus else []
    faults += [f"{_some([_shapes(*mismatch) for mismatch in other])} of another shape"] if other else []
    faults += [first_line(ValueError(message)) for message in info.get("error_msgs", ())[:1]]
    if faults:
        raise ModelError(f"{name}: the weights are not those of config.json: {'; '.join(faults)}; {_remedy(surplus)}")


def check_weights(network: Any, name: str) -> None:
    """Look for NaN and infinity in the weights, one pass over each.

    Raises:
        ModelError: a weight holds some.
    """
    for key, weight in network.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize == 1:
            continue
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # The sum is finite only if all of it is; it may overflow without.
        if torch.isfinite(weight.detach().sum(dtype=wide)) or bool(torch.isfinite(weight).all()):
            continue
        what = "NaN" if bool(weight.isnan().any()) else "infinity"
        short = f" in {str(weight.dtype).removeprefix('torch.')}" if weight.dtype == torch.float16 else ""
        mend = "load it in float32, or " if short else ""
        raise ModelError(f"{name}: weight {key} holds {what}{short}; {mend}fetch the model again or give another one")


def _named_by_page(path: str) -> str:
    parts = path.strip("/").split("/")
    if parts[0] in ("datasets", "spaces", "docs", "models") or len(parts) == 3:
        return WANTED
    revision = f" and --revision {parts[3]}" if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve") else ""
    return f"give the model's name, {'/'.join(parts[:2])}{revision}"


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return _shards(folder, folder / INDEX)
    if file := next((path for pattern in PICKLED for path in sorted(folder.glob(pattern))), None):
        raise ModelError(
            f"model folder {folder} holds no {SINGLE} but pickled weights ({file.name}), which may run code when they "
            "are read; if you trust them, convert them once with "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    others = ", ".join(path.name for path in sorted(folder.glob("*.safetensors"))[:3])
    raise ModelError(
        f"model folder {folder} has a config.json but no weights; expected {SINGLE} (or shards with an index) beside it"
        + (f", found {others}" if others else "")
    )


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    _check_contents([index])
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        paths = tuple(folder / file for file in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is no index of weights ({first_line(error)}); fetch or save it again") from error
    if lost := [path.name for path in paths if not path.is_file()]:
        raise ModelError(f"model folder {folder} lacks {_some(lost)}, named in {index.name}; fetch the model again")
    if not paths:
        raise ModelError(f"{index} names no files; fetch or save the model again")
    return paths


def _check_contents(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            with path.open("rb") as file:
                head = file.read(len(POINTER))
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror or first_line(error)})") from error
        if head == POINTER:
            raise ModelError(f"{path} is a git-lfs pointer and not the file itself; fetch it with: git lfs pull")
        if not head:
            raise ModelError(f"{path} is empty; fetch or save it again")


def _not_of_the_text(network: Any) -> tuple[str, ...]:
    """How the names of parts begin that the text part of a model of several modalities does without."""
    config = network.config
    if config.get_text_config(decoder=True) is config:
        return ()
    try:
        kept = (network.get_decoder(), network.get_output_embeddings())
    except (AttributeError, NotImplementedError):
        return ()
    names = [name for name, part in network.named_modules() if part in kept]

    def is_kept(name: str) -> bool:
        return any(f"{other}.".startswith(f"{name}.") or name.startswith(f"{other}.") for other in names)

    return tuple(f"{name}." for name, _ in network.named_modules() if name and not is_kept(name))


def _remedy(surplus: list[str]) -> str:
    prefix, ways = "", []
    while longer := next(
        (candidate for candidate in PREFIXES if all(key.startswith(prefix + candidate) for key in surplus)), None
    ):
        if not surplus:
            break
        prefix += longer
        ways.append(PREFIXES[longer])
    if prefix:
        return f"every key has the prefix {prefix!r} of {ways[0]}, or take the prefix off the keys"
    return "save the whole model again with save_pretrained, or mend config.json"


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _shapes(key: str, stored: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{key} ({'x'.join(map(str, stored))} for {'x'.join(map(str, wanted))})"
