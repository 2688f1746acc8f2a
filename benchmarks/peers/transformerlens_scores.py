"""TransformerLens 4.3's own edge attribution in this project's names, signs and scale.

Runs in the project's environment. `transformer_lens.tools.analysis.attribution_patching`
takes deltas as clean - corrupt and the gradient at the corrupt run, one prompt pair and one
position at a time. So the arguments are swapped and positions are added up:

    score(s->d) = sum over positions of (z_s corrupt - z_s clean) . dm/d(input of d) at clean

averaged over prompt pairs. A positive score means that corrupting the edge raises m, the
mean logit of the answers minus the mean logit of the wrong answers at the last position.

    python transformerlens_scores.py --model FOLDER --pairs FILE --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

READERS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def transformerlens_eap(folder, prompts, dtype: str = "float32") -> dict[str, float]:
    """Scores of all edges, keyed `a0.h1->a2.h3<q>`.

    Parameters
    ----------
    folder : a local Hugging Face folder that TransformerBridge can boot, plain heads only.
    prompts : dictionaries with `clean`, `corrupt`, `answers`, `wrong_answers`, all text or all
        token ids, the two prompts of one dictionary equally long in tokens.
    dtype : "float32" or "float64".

    Raises
    ------
    ValueError : no such folder, no prompts, unequal lengths, or an answer that is not one token.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder; give a local Hugging Face folder")
    if not prompts:
        raise ValueError("no prompts; give at least one pair")
    return scores_of(boot(folder, dtype), prompts)


def scores_of(model, prompts) -> dict[str, float]:
    """The same for a model of `boot`, so that loading it can be left out of a time."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    totals: defaultdict[str, float] = defaultdict(float)
    for prompt in prompts:
        clean, corrupt = (_ids(model, prompt[side]) for side in ("clean", "corrupt"))
        result = attribution_patch(
            model,
            clean=corrupt,  # swapped: deltas point from clean to corrupt,
            corrupt=clean,  # and the gradient is taken at the clean run
            metric_fn=_logit_difference(model, prompt),
            config=EdgeAttributionConfig(granularity="edge"),
        )
        for (writer, reader), score in result.edge_scores.items():
            totals[f"{_source(writer)}->{_slot(reader)}"] += score
    return {edge: total / len(prompts) for edge, total in totals.items()}


def boot(folder, dtype: str):
    """The bridge around a local Hugging Face folder."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=getattr(torch, dtype))
    return model.eval()


def _ids(model, text):
    """Token ids (1, pos), no special tokens; ids are taken as they are."""
    import torch

    if not isinstance(text, str):
        return torch.tensor([text])
    return torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])


def _logit_difference(model, prompt: dict):
    """Logits (1, pos, vocab) to answers minus wrong answers at the last position."""
    right, wrong = (
        [_answer_id(model, prompt["clean"], word) for word in prompt[side]] for side in ("answers", "wrong_answers")
    )
    return lambda logits: logits[0, -1, right].mean() - logits[0, -1, wrong].mean()


def _answer_id(model, text, answer) -> int:
    """The one id that the answer adds after its prompt; an id is taken as it is."""
    if isinstance(answer, int):
        return answer
    before, after = _ids(model, text)[0].tolist(), _ids(model, text + answer)[0].tolist()
    if after[:-1] != before:
        raise ValueError(f"answer {answer!r} is not one token after its prompt {text!r}")
    return after[-1]


def _source(node) -> str:
    if node.kind == "embed":
        return "input"
    return f"m{node.layer}" if node.kind == "mlp_out" else f"a{node.layer}.h{node.head}"


def _slot(node) -> str:
    if node.kind == "logits":
        return "logits"
    if node.kind == "mlp_in":
        return f"m{node.layer}"
    return f"a{node.layer}.h{node.head}<{READERS[node.kind]}>"


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, write the scores; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="local Hugging Face folder")
    parser.add_argument("--pairs", required=True, help="auto-circuit's JSON of prompt pairs")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args(argv)
    try:
        prompts = json.loads(Path(args.pairs).read_text(encoding="utf-8"))["prompts"]
        scores = transformerlens_eap(args.model, prompts, args.dtype)
        Path(args.out).write_text(json.dumps({"scores": scores}, indent=1) + "\n")
    except (OSError, ValueError, KeyError) as error:
        print(f"transformerlens_scores.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(scores)} edges")
    return 0


if __name__ == "__main__":
    sys.exit(main())
