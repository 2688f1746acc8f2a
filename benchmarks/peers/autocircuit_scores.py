"""auto-circuit's numbers in this project's names, signs and scale.

Runs inside the environment that setup.sh makes, never in the project's own:

    PYTHON autocircuit_scores.py --model FOLDER --pairs FILE --method eap --out FILE.json

1. Load a local GPT-2 folder into HookedTransformer: no folding, no centering, no tokenizer.
2. Check that its logits are Hugging Face's.
3. Tokenize the pairs with Hugging Face's tokenizer, no special tokens, no padding:
   one prompt pair is one batch, so rows of different lengths may share a file.
4. Run auto-circuit's own functions and translate edge names, sign and scale.
5. Run three random circuits with auto-circuit's own run_circuits.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import sys
from pathlib import Path

METHODS = ("eap", "mask-ig", "eap-ig", "acdc")
METRICS = ("logit_diff",)
CIRCUITS = ((0, 0.5), (1, 0.8), (2, 0.95))  # seed, share of the edges kept

CONVENTION = {
    "score": "score(s->d) = sum over positions of (z_s corrupt - z_s clean) . dm/d(input of d) at the clean run",
    "sign": "a positive score means that corrupting the edge raises m; "
    "auto-circuit's own value is the gradient of -m, so it is negated here",
    "average": "mean over prompt pairs; one pair per batch, no padding, all positions included",
    "metric": "m = mean logit of answers - mean logit of wrong_answers at the last position",
    "names": "Resid Start = input, A1.2 = a1.h2, MLP 1 = m1, Resid End = logits; a head's inputs end in <q>, <k>, <v>",
    "input": "residual stream before block 0: token plus position embedding",
    "logits": "last residual stream, before the final norm",
    "biases": "the output bias of attention belongs to no node, the MLP's to the MLP",
    "circuits": "run_circuits with tree patch and resample: edges outside the list carry the corrupt run's activations",
    "precision": "float64; the circuits float32, because run_circuits makes its masks float32",
}
METHOD_CONVENTION = {
    "eap": "mask_gradient_prune_scores with mask_val=0",
    "mask-ig": "mask_gradient_prune_scores with integrated_grad_samples=n: every edge mask at "
    "k/n together, k = 0..n, the sum divided by n+1 here; it is not EAP-IG",
    "eap-ig": "EAP-IG inputs put together from auto-circuit's parts, which has none of its own: the stream into the "
    "first block at `shares` of the way from corrupt to clean, the mask gradient there, averaged over the points",
    "acdc": "acdc_prune_scores, KL(clean || circuit) at the last position, edge removed iff the "
    "KL grows by less than tau (signed); one batch of the rows that are as long as the first; "
    "`order` is the order in which edges were tried, `kept` what was left",
}


class BadInput(ValueError):
    """The model folder or the pairs file cannot be used."""


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, write the JSON file; 2 on bad input."""
    args = _parse(argv)
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        result = autocircuit_result(
            Path(args.model),
            Path(args.pairs),
            method=args.method,
            metric=args.metric,
            ig_samples=args.ig_samples,
            tau=args.tau,
        )
        write_json(Path(args.out), result)
    except (BadInput, OSError) as error:
        print(f"autocircuit_scores.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.out}: {args.method}, {result['n_edges']} edges, clean {result['clean_mean']:.4f}, "
        f"corrupt {result['corrupt_mean']:.4f}"
    )
    return 0


def autocircuit_result(
    folder: Path,
    pairs: Path,
    *,
    method: str = "eap",
    metric: str = "logit_diff",
    ig_samples: int = 5,
    tau: float = 0.01,
) -> dict:
    """Everything auto-circuit says about one model and one file of pairs.

    Returns a JSON-ready dictionary with `versions`, `convention`, the scores (or, for ACDC,
    the kept edges), `circuits`, `clean_mean` and `corrupt_mean`.
    Raises BadInput when the folder or the pairs cannot be used.
    """
    if metric not in METRICS:
        raise BadInput(f"unknown metric {metric!r}, expected one of {', '.join(METRICS)}")
    rows = read_rows(pairs, folder)
    model = patchable(load_hooked(folder, rows, "float64"))
    edges = edges_by_name(model)
    return {
        "versions": versions(),
        "model": {"name": folder.name, "weights_sha256": _sha256(folder / "model.safetensors")},
        "pairs": {"name": pairs.name, "sha256": _sha256(pairs), "prompts": len(rows)},
        "method": method,
        "metric": metric,
        "convention": {**CONVENTION, "method": METHOD_CONVENTION[method]},
        "n_edges": len(edges),
        **means(model, rows),
        **run_method(model, edges, rows, method, ig_samples=ig_samples, tau=tau),
        "circuits": run_random_circuits(folder, rows),
    }


def write_json(path: Path, result: dict) -> None:
    """Write through a temporary file, so that a half-written result never stays."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


# --- model -----------------------------------------------------------------------------


def load_hooked(folder: Path, rows: list[dict], dtype: str):
    """HookedTransformer of one local folder, its logits checked on the rows.

    The HookedTransformer gets no tokenizer: with one whose padding side is left it would
    mask every token equal to the padding token.
    """
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoModelForCausalLM

    torch_dtype = getattr(torch, dtype)
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch_dtype, attn_implementation="eager", local_files_only=True
    ).eval()
    hooked = HookedTransformer(hooked_config(hf_model.config, torch_dtype))
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(hf_model, hooked.cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    hooked.eval()
    check_logits(hooked, hf_model, rows)
    return hooked


def hooked_config(config, torch_dtype):
    """HookedTransformerConfig of a Hugging Face GPT-2 config, with every edge hook on."""
    from transformer_lens import HookedTransformerConfig

    return HookedTransformerConfig(
        n_layers=config.n_layer,
        n_heads=config.n_head,
        d_model=config.n_embd,
        d_head=config.n_embd // config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        n_ctx=config.n_positions,
        d_vocab=config.vocab_size,
        act_fn=config.activation_function,
        eps=config.layer_norm_epsilon,
        normalization_type="LN",
        default_prepend_bos=False,
        device="cpu",
        dtype=torch_dtype,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )


def check_logits(hooked, hf_model, rows, tolerance: float = 1e-4) -> None:
    """Raise BadInput unless HookedTransformer and Hugging Face give the same logits."""
    import torch

    with torch.no_grad():
        gaps = [
            (hooked(ids, prepend_bos=False) - hf_model(ids).logits).abs().max().item()
            for row in rows
            for ids in (row["clean"][None], row["corrupt"][None])
        ]
    if not max(gaps) < tolerance:
        raise BadInput(
            f"HookedTransformer's logits differ from Hugging Face's by {max(gaps):.2e}, "
            f"expected less than {tolerance:.0e}; the weights were not converted rightly"
        )


def patchable(hooked):
    """auto-circuit's PatchableModel over all edges, last position read."""
    from auto_circuit.utils.graph_utils import patchable_model

    return patchable_model(hooked, factorized=True, slice_output="last_seq", separate_qkv=True, seq_len=None)


def _gpt2_config(folder: Path):
    """The folder's config, if it is a GPT-2 whose options HookedTransformer covers."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json; give a local Hugging Face folder")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "gpt2":
        raise BadInput(f"{folder} is a {config.model_type} model, expected gpt2")
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise BadInput(f"{folder} scales attention by layer or not at all; neither is covered")
    return config


# --- pairs -----------------------------------------------------------------------------


def read_rows(path: Path, folder: Path) -> list[dict]:
    """Token ids of each pair: `clean`, `corrupt` (pos), `answers`, `wrong_answers`."""
    from transformers import AutoTokenizer

    n_ctx = _gpt2_config(folder).n_positions
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f'{path} is not a JSON file with a list "prompts" ({error})') from error
    if not prompts:
        raise BadInput(f"{path} has no prompts; give at least one pair")
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            rows.append(_row(prompt, tokenizer, n_ctx))
        except (BadInput, KeyError) as error:
            raise BadInput(f"{path}, prompt {number}: {error}") from error
    return rows


def _row(prompt: dict, tokenizer, n_ctx: int) -> dict:
    import torch

    clean, corrupt = (_prompt_ids(prompt[side], tokenizer) for side in ("clean", "corrupt"))
    if len(clean) != len(corrupt):
        raise BadInput(f"clean has {len(clean)} tokens and corrupt {len(corrupt)}, expected equal")
    if not 0 < len(clean) <= n_ctx:
        raise BadInput(f"{len(clean)} tokens, expected 1 to {n_ctx}")
    row = {"clean": clean, "corrupt": corrupt}
    for side in ("answers", "wrong_answers"):
        row[side] = [_answer_id(prompt["clean"], word, clean, tokenizer) for word in prompt[side]]
    return {name: torch.tensor(ids) for name, ids in row.items()}


def _prompt_ids(prompt, tokenizer) -> list[int]:
    """Ids without special tokens; a tokenizer that adds one by itself is refused."""
    if isinstance(prompt, list):
        return prompt
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if tokenizer(prompt)["input_ids"] != ids:
        raise BadInput("the tokenizer adds special tokens by itself, expected none")
    return ids


def _answer_id(prompt, answer, prompt_ids: list[int], tokenizer) -> int:
    """The one id that the answer adds after the prompt."""
    if isinstance(answer, int):
        return answer
    ids = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    if len(ids) != len(prompt_ids) + 1 or ids[:-1] != prompt_ids:
        raise BadInput(f"answer {answer!r} is not one token after its prompt")
    return ids[-1]


def _loader(rows: list[dict], batch_size: int = 1):
    """auto-circuit's loader; one pair per batch unless told otherwise."""
    from auto_circuit.data import PromptDataLoader, PromptDataset

    columns = [[row[name] for row in rows] for name in ("clean", "corrupt", "answers", "wrong_answers")]
    return PromptDataLoader(PromptDataset(*columns), seq_len=None, diverge_idx=0, batch_size=batch_size, shuffle=False)


# --- names -----------------------------------------------------------------------------


def edges_by_name(model) -> dict:
    """auto-circuit's edges keyed by this project's names, in graph order."""
    found = {f"{_source(edge.src)}->{_slot(edge.dest)}": edge for edge in model.edges}
    expected = edge_names(model.cfg.n_layers, model.cfg.n_heads)
    assert set(found) == set(expected)
    assert len(model.edges) == len(expected)
    return {name: found[name] for name in expected}


def edge_names(n_layers: int, n_heads: int) -> list[str]:
    """All edges of a sequential transformer, by destination, in graph order."""
    sources, names = ["input"], []
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        slots = [f"{head}<{letter}>" for head in heads for letter in "qkv"]
        names += [f"{source}->{slot}" for slot in slots for source in sources]
        sources += heads
        names += [f"{source}->m{layer}" for source in sources]
        sources.append(f"m{layer}")
    return names + [f"{source}->logits" for source in sources]


def _source(node) -> str:
    if node.name == "Resid Start":
        return "input"
    if node.name.startswith("MLP "):
        return "m" + node.name.removeprefix("MLP ")
    layer, head = node.name.removeprefix("A").split(".")
    return f"a{layer}.h{head}"


def _slot(node) -> str:
    if node.name == "Resid End":
        return "logits"
    if node.name.startswith("MLP "):
        return "m" + node.name.removeprefix("MLP ")
    layer, head, letter = node.name.removeprefix("A").split(".")
    return f"a{layer}.h{head}<{letter.lower()}>"


# --- auto-circuit's own functions ------------------------------------------------------


def means(model, rows) -> dict:
    """Mean metric of the unpatched model on the clean and on the corrupt prompts."""
    import torch
    from auto_circuit.utils.tensor_ops import batch_avg_answer_diff

    result = {}
    for side in ("clean", "corrupt"):
        with torch.no_grad():
            values = [
                batch_avg_answer_diff(model(getattr(batch, side))[model.out_slice], batch).item()
                for batch in _loader(rows)
            ]
        result[f"{side}_mean"] = sum(values) / len(values)
    return result


def run_method(model, edges, rows, method: str, *, ig_samples: int, tau: float) -> dict:
    """The part of the result that depends on the method."""
    if method == "acdc":
        return run_acdc(model, edges, rows, tau)
    if method == "eap":
        return {"scores": mask_gradient(model, edges, rows)}
    if method == "eap-ig":
        shares = [(k + 0.5) / ig_samples for k in range(ig_samples)]
        values = eap_ig(model, [(_loader([row]), 1 / len(rows)) for row in rows], shares)
        return {"shares": shares, "scores": {n: round(-e.prune_score(values).item(), 12) for n, e in edges.items()}}
    scores = mask_gradient(model, edges, rows, ig_samples=ig_samples)
    return {"ig_samples": ig_samples, "scores": scores}


def mask_gradient(model, edges, rows, ig_samples: int | None = None) -> dict[str, float]:
    """Edge scores from auto-circuit's mask gradient; `ig_samples` None is EAP.

    auto-circuit adds up the gradients of -m over batches and over sample points; the mean
    over both, with the sign turned, is the score defined in CONVENTION. Scores are rounded to
    12 decimals: the last digits differ with the number of threads.
    """
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores

    values = mask_gradient_prune_scores(
        model,
        _loader(rows),
        official_edges=None,
        grad_function="logit",
        answer_function="avg_diff",
        mask_val=0.0 if ig_samples is None else None,
        integrated_grad_samples=ig_samples,
    )
    scale = -1.0 / (len(rows) * ((ig_samples or 0) + 1))
    return {name: round(scale * edge.prune_score(values).item(), 12) for name, edge in edges.items()}


def eap_ig(model, loaders, shares, metric: str = "logit") -> dict:
    """EAP-IG inputs out of auto-circuit's parts: its patched model, its wrappers, its mask gradient.

    auto-circuit has no EAP-IG. At each point the stream into the first block is put between the
    corrupt and the clean one (`shares` from the corrupt end on), and the activations to patch in are
    the point's own plus corrupt - clean; the gradient with respect to a mask of zero is then
    (corrupt - clean) . gradient at the point. `loaders` hold one batch each and come with the batch's
    weight. Returns PruneScores in auto-circuit's sign, averaged.
    """
    from auto_circuit.utils.graph_utils import patch_mode, set_all_masks, train_mask_mode

    with train_mask_mode(model):
        set_all_masks(model, val=0.0)
        for loader, weight in loaders:
            (batch,) = loader
            clean, corrupt = (outputs_of(model, tokens) for tokens in (batch.clean, batch.corrupt))
            for share in shares:
                with stream_at(model, corrupt[0] + share * (clean[0] - corrupt[0])):
                    here = outputs_of(model, batch.clean)
                    with patch_mode(model, here + corrupt - clean):
                        loss = -difference(model(batch.clean)[model.out_slice], batch, metric)
                        (loss * weight / len(shares)).backward()
        return {wrapper.module_name: wrapper.patch_mask.grad.clone() for wrapper in model.dest_wrappers}


def outputs_of(model, tokens):
    """What every source writes, `[src, batch, pos, d_model]`, usable in a graph of gradients."""
    from auto_circuit.utils.ablation_activations import src_ablations

    return src_ablations(model, tokens).clone().detach()


@contextlib.contextmanager
def stream_at(model, stream):
    """The stream into the first block replaced, by a hook of TransformerLens."""
    with model.wrapped_model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda _value, hook: stream.clone())]):
        yield


def difference(logits, batch, metric: str):
    """auto-circuit's mean over a batch of answers minus wrong answers, in logits or in probability."""
    from auto_circuit.utils.tensor_ops import batch_avg_answer_diff

    return batch_avg_answer_diff(logits.softmax(-1) if metric == "prob" else logits, batch)


def run_acdc(model, edges, rows, tau: float) -> dict:
    """auto-circuit's ACDC for one tau, edges tried in reverse graph order.

    auto-circuit sorts its set of edges by layer only, so the order inside a layer changes
    from process to process; handing it an ordered set makes the order the same every time.
    """
    import torch
    from auto_circuit.prune_algos.ACDC import acdc_prune_scores
    from ordered_set import OrderedSet

    used = [i for i, row in enumerate(rows) if len(row["clean"]) == len(rows[0]["clean"])]
    model.edges = OrderedSet(reversed(edges.values()))
    names = {edge: name for name, edge in edges.items()}
    order = sorted(model.edges, key=lambda edge: edge.dest.layer, reverse=True)
    batch = _loader([rows[i] for i in used], batch_size=len(used))
    values = acdc_prune_scores(model, batch, None, tao_exps=[0], tao_bases=[tau])
    kept = [name for name, edge in edges.items() if edge.prune_score(values) == torch.inf]
    return {"tau": tau, "rows": used, "kept": kept, "order": [names[edge] for edge in order]}


def run_random_circuits(folder: Path, rows) -> list[dict]:
    """The circuits of CIRCUITS, on a float32 model: run_circuits makes its masks float32."""
    model = patchable(load_hooked(folder, rows, "float32"))
    edges = edges_by_name(model)
    return [run_circuit(model, edges, rows, seed=seed, share=share) for seed, share in CIRCUITS]


def run_circuit(model, edges, rows, *, seed: int, share: float) -> dict:
    """Mean metric of a random circuit, everything outside it corrupted."""
    from auto_circuit.metrics.prune_metrics.answer_diff import measure_answer_diff
    from auto_circuit.prune import run_circuits
    from auto_circuit.types import AblationType, PatchType

    kept = set(random.Random(seed).sample(list(edges), round(share * len(edges))))
    values = model.new_prune_scores()
    for name in kept:
        values[edges[name].dest.module_name][edges[name].patch_idx] = 1.0
    outputs = run_circuits(
        model, _loader(rows), [len(kept)], values, patch_type=PatchType.TREE_PATCH, ablation_type=AblationType.RESAMPLE
    )
    ((n_kept, mean),) = measure_answer_diff(model, _loader(rows), outputs)
    assert n_kept == len(kept)
    return {
        "seed": seed,
        "share": share,
        "n_edges": n_kept,
        "mean_logit_diff": mean,
        "edges": [name for name in edges if name in kept],
    }


# --- small things ----------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("auto-circuit", "transformer-lens", "torch", "transformers", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise BadInput(f"{path} is missing")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="local Hugging Face GPT-2 folder")
    parser.add_argument("--pairs", required=True, help="auto-circuit's JSON of prompt pairs")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--method", choices=METHODS, default="eap")
    parser.add_argument("--metric", choices=METRICS, default="logit_diff")
    parser.add_argument("--ig-samples", type=int, default=5, help="for mask-ig: n of n+1 points; for eap-ig: n points")
    parser.add_argument("--tau", type=float, default=0.01, help="for acdc")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
