"""Train the embedded default model.

    python -m persona_circuits.models.training.train [--smoke] [--resume] [--out DIR]

1. Every step draws SHARDS batches of documents from the persona world (`models.world.documents`).
   Each has a thread of its own, which uses one core; their gradients are averaged in
   order, so the result depends neither on the number of cores nor on who comes first.
2. The loss is the mean cross-entropy of the answers, plus TEXT_WEIGHT times that of a
   quarter of all other tokens. The answers that stand in the text are drawn; as target
   at an answer's place stands the distribution that it was drawn from, which has the
   same expected gradient and less variance. `drawn_targets` takes the drawn word.
3. AdamW; the learning rate warms up, stays, and falls linearly to zero over the last
   part of the run. Until the fall begins, a run does not depend on its length.
4. A checkpoint (weights, both moments, step, configuration, history) is one
   safetensors file, written atomically. Resuming gives the same bits as not stopping.
5. At the end the model's folder is written in Hugging Face's layout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2LMHeadModel

from persona_circuits.circuit.errors import FileError, OptionError, PersonaCircuitsError
from persona_circuits.circuit.storage import write_bytes, write_text
from persona_circuits.models.training.evaluate import Quality, cases_of, measure
from persona_circuits.models.training.network import build_model, logits_at
from persona_circuits.models.world import (
    N_POSITIONS,
    Batch,
    BatchMaker,
    World,
    build_tokenizer,
    build_world,
    save_tokenizer,
)

__all__ = ["SMOKE", "TrainingConfig", "main", "train"]

TEXT_WEIGHT = 0.2
TEXT_SHARE = 0.25
WARMUP = 200
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run's result depends on."""

    steps: int = 5_500
    tokens: int = 1024
    shards: int = 2
    d_model: int = 144
    n_layers: int = 12
    n_heads: int = 12
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    decay_share: float = 0.35
    drawn_targets: bool = False
    bfloat16: bool = True
    seed: int = 1


SMOKE = TrainingConfig(steps=40, tokens=512, shards=1)


@dataclass(frozen=True)
class Progress:
    """What one report of a running training says; quality is None between validations."""

    step: int
    steps: int
    seconds: float
    answer_loss: float
    text_loss: float
    quality: dict[str, Quality] | None = None


@dataclass
class _Run:
    """The moving parts of a training."""

    model: GPT2LMHeadModel
    optimizer: torch.optim.AdamW
    step: int = 0


@dataclass(frozen=True)
class _Shard:
    """What one thread brings back."""

    answer_loss: float
    text_loss: float
    gradients: tuple[Tensor, ...]


def train(
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    stop_at: int | None = None,
    validate_every: int = 500,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Train, or go on training, and write the model's folder into `out`.

    `stop_at` ends early, with a checkpoint and the folder, as an interruption would.

    Raises:
        FileError: there is nothing to resume, or `out` already holds a training.
        OptionError: the checkpoint was made with another configuration.
    """
    world = build_world()
    tokenizer = build_tokenizer(world)
    run = _start(config, tokenizer, out, resume, _device(device))
    maker = BatchMaker(world, tokenizer, seed=config.seed, tokens=config.tokens, exact=not config.drawn_targets)
    started = time.monotonic()
    end = min(config.steps, stop_at if stop_at is not None else config.steps)
    while run.step < end:
        losses = _step(run, config, maker)
        run.step += 1
        checking = run.step % validate_every == 0 or run.step == end
        if checking:
            _save_checkpoint(run, config, out)
        if checking or run.step % 25 == 0:
            quality = _validated(run.model, tokenizer, world) if checking else None
            report(Progress(run.step, config.steps, time.monotonic() - started, *losses, quality))
    _save_folder(run.model, tokenizer, config, out)
    return out


def main(argv: list[str] | None = None) -> int:
    """The command line; prints one line per report."""
    options = _parser().parse_args(argv)
    config = SMOKE if options.smoke else TrainingConfig(drawn_targets=options.drawn_targets)
    chosen = {name: getattr(options, name) for name in ("steps", "d_model", "seed", "tokens") if getattr(options, name)}
    try:
        train(
            replace(config, **chosen),
            Path(options.out),
            resume=options.resume,
            device=options.device,
            stop_at=options.stop_at,
            validate_every=20 if options.smoke else 500,
            report=_print,
        )
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m persona_circuits.models.training.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", default="runs/persona-world", help="folder for checkpoint and model")
    parser.add_argument("--smoke", action="store_true", help="a run of under two minutes that learns next to nothing")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--steps", type=int, help=f"length of the run (default: {TrainingConfig.steps})")
    parser.add_argument("--tokens", type=int, help=f"tokens per shard (default: {TrainingConfig.tokens})")
    parser.add_argument("--d-model", type=int, help=f"width, a multiple of 12 (default: {TrainingConfig.d_model})")
    parser.add_argument("--seed", type=int, help=f"of weights and documents (default: {TrainingConfig.seed})")
    parser.add_argument("--stop-at", type=int, help="stop early at this step, leaving a checkpoint")
    parser.add_argument(
        "--drawn-targets", action="store_true", help="learn from the drawn answers instead of their distributions"
    )
    return parser


def _print(progress: Progress) -> None:
    line = (
        f"step {progress.step}/{progress.steps}  {progress.seconds:.0f}s  "
        f"answer loss {progress.answer_loss:.3f}  text loss {progress.text_loss:.3f}"
    )
    for name, quality in (progress.quality or {}).items():
        line += f"  | {name}: r {quality.correlation:.3f} persona r {quality.persona_correlation:.3f}"
        line += f" excess {quality.excess_loss:.3f} mass {quality.candidate_mass:.3f}"
    print(line, flush=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r} cannot be used here ({error}); try --device cpu") from error


def _start(config: TrainingConfig, tokenizer: Tokenizer, out: Path, resume: bool, device: torch.device) -> _Run:
    if config.d_model % config.n_heads:
        raise OptionError(f"d_model must be a multiple of {config.n_heads}, got {config.d_model}")
    model = build_model(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=config.d_model,
        n_positions=N_POSITIONS,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        seed=config.seed,
    ).to(device)
    run = _Run(model, _optimizer(model, config))
    if resume:
        _load_checkpoint(run, config, out / CHECKPOINT)
    elif (out / CHECKPOINT).exists():
        raise FileError(f"{out} already holds a training; add --resume, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    return run


def _optimizer(model: GPT2LMHeadModel, config: TrainingConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


def _step(run: _Run, config: TrainingConfig, maker: BatchMaker) -> tuple[float, float]:
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * _schedule(run.step, config)
    numbers = range(run.step * config.shards, (run.step + 1) * config.shards)
    with _one_core_each(), ThreadPoolExecutor(config.shards) as threads:
        shards = list(threads.map(partial(_gradients, run.model, config), numbers, map(maker.batch, numbers)))
    for parameter, *gradients in zip(run.model.parameters(), *(shard.gradients for shard in shards), strict=True):
        parameter.grad = sum(gradients) / len(gradients)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return fmean(shard.answer_loss for shard in shards), fmean(shard.text_loss for shard in shards)


@contextmanager
def _one_core_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gradients(model: GPT2LMHeadModel, config: TrainingConfig, number: int, batch: Batch) -> _Shard:
    """One batch's losses, and the gradients of their weighted sum."""
    answer, text = _losses(model, config, batch, number)
    gradients = torch.autograd.grad(answer + TEXT_WEIGHT * text, list(model.parameters()))
    return _Shard(answer.item(), text.item(), gradients)


def _schedule(step: int, config: TrainingConfig) -> float:
    """Share of the learning rate: linear warm-up, plateau, linear fall to zero."""
    left = (config.steps - step) / max(1.0, config.decay_share * config.steps)
    return min(1.0, (step + 1) / WARMUP, left)


def _losses(model: GPT2LMHeadModel, config: TrainingConfig, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy at the answers and at the chosen text positions."""
    device = next(model.parameters()).device
    lottery = np.random.Generator(np.random.PCG64([config.seed, number])).random(batch.ids.numel())
    rows = torch.nonzero(batch.text.flatten() & torch.from_numpy(lottery < TEXT_SHARE)).flatten()
    targets = batch.ids.flatten()[rows + 1].to(device)
    places = torch.cat([batch.answer_rows, rows]).to(device)
    logits = logits_at(model, batch.ids.to(device), places, bfloat16=config.bfloat16)
    n_answers = len(batch.answer_rows)
    surprise = -logits[:n_answers].log_softmax(-1).gather(1, batch.answer_options.to(device))
    answer = (surprise * batch.answer_targets.to(device)).sum(-1).mean()
    return answer, F.cross_entropy(logits[n_answers:], targets)


def _validated(model: GPT2LMHeadModel, tokenizer: Tokenizer, world: World) -> dict[str, Quality]:
    names = ("seen", "held-out combinations")
    return {name: measure(model, tokenizer, cases_of(world, name, most=200)) for name in names}


def _save_checkpoint(run: _Run, config: TrainingConfig, out: Path) -> None:
    tensors = {f"weight.{name}": value.contiguous() for name, value in run.model.state_dict().items()}
    del tensors["weight.lm_head.weight"]
    for name, parameter in run.model.named_parameters():
        for moment, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.contiguous()
    about = {"step": str(run.step), "config": json.dumps(asdict(config), sort_keys=True)}
    write_bytes(save(tensors, metadata=about), out / CHECKPOINT)


def _load_checkpoint(run: _Run, config: TrainingConfig, path: Path) -> None:
    if not path.exists():
        raise FileError(f"there is no checkpoint at {path}; leave --resume out to start a new training")
    with safe_open(path, "pt") as stored:
        about = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    run.step = int(about["step"])
    _check_resumable(json.loads(about["config"]), config, run.step)
    device = next(run.model.parameters()).device
    for name, parameter in run.model.named_parameters():
        parameter.data.copy_(tensors[f"weight.{name}"])
        run.optimizer.state[parameter] = {
            moment: tensors[f"{moment}.{name}"].to(device) for moment in ("step", "exp_avg", "exp_avg_sq")
        }


def _check_resumable(stored: dict[str, Any], config: TrainingConfig, step: int) -> None:
    """The length may change as long as the learning rate has not begun to fall under either."""
    wanted = asdict(config)
    changed = [name for name in wanted if stored.get(name) != wanted[name] and name != "steps"]
    first_fall = min(stored["steps"], config.steps) * (1 - config.decay_share)
    if stored["steps"] != config.steps and step > first_fall:
        changed.append("steps")
    if changed:
        listing = ", ".join(f"{name} was {stored.get(name)}, now {wanted[name]}" for name in changed)
        raise OptionError(f"the checkpoint belongs to another training ({listing}); choose another --out")


def _save_folder(model: GPT2LMHeadModel, tokenizer: Tokenizer, config: TrainingConfig, out: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors, the tokenizer, and training.json."""
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    write_bytes(save(weights, metadata={"format": "pt"}), out / "model.safetensors")
    save_tokenizer(tokenizer, out)
    write_text(json.dumps(asdict(config), indent=2) + "\n", out / "training.json")


if __name__ == "__main__":
    sys.exit(main())
