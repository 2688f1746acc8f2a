"""auto-circuit's score files to safetensors, and back.

Runs inside the environment that setup.sh makes, since auto-circuit saves with PyTorch's pickles:

    PYTHON convert_scores.py FILE.pkl OUT.safetensors [--key TASK/ALGORITHM]
    PYTHON convert_scores.py FILE.safetensors OUT.pkl

A file of `save_cache` holds scores by module ("blocks.0.hook_q_input": [head, src], ...), or
dictionaries of such dictionaries; `--key` then says which. Nothing but tensors, numbers, text and
dictionaries is unpickled. Values, names and signs are left as they are: `circuit.peers.autocircuit`
reads and writes the safetensors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


class BadInput(ValueError):
    """The file is not what it should be."""


def main(argv: list[str] | None = None) -> int:
    """Convert one file; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--key", default="", help="which scores of a file with several, parts separated by /")
    args = parser.parse_args(argv)
    try:
        found = read(args.source, args.key)
        write(found, args.target)
    except (BadInput, OSError) as error:
        print(f"convert_scores.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.target}: {len(found)} modules")
    return 0


def read(path: Path, key: str = "") -> dict:
    """Module names to tensors, out of either kind of file."""
    from safetensors.torch import load_file

    content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    for part in filter(None, key.split("/")):
        if not isinstance(content, dict) or part not in {str(name) for name in content}:
            raise BadInput(f"{path} has no {part!r}; {_kinds(content)}")
        content = next(value for name, value in content.items() if str(name) == part)
    if not _is_scores(content):
        raise BadInput(f"{path} holds no scores by module here; {_kinds(content)}; choose with --key")
    return {name: values.detach().clone().contiguous() for name, values in content.items()}


def write(scores: dict, path: Path) -> None:
    """Write either kind of file, through a temporary one."""
    import torch
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".tmp")
    if path.suffix == ".safetensors":
        save_file(scores, temporary)
    else:
        torch.save(scores, temporary)
    temporary.replace(path)


def _unpickled(path: Path):
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadInput(f"{path} holds more than tensors and dictionaries, or is no PyTorch file") from error


def _is_scores(content) -> bool:
    import torch

    return isinstance(content, dict) and bool(content) and all(isinstance(v, torch.Tensor) for v in content.values())


def _kinds(content) -> str:
    return (
        f"it has {', '.join(map(str, content))}" if isinstance(content, dict) else f"it is a {type(content).__name__}"
    )


if __name__ == "__main__":
    sys.exit(main())
