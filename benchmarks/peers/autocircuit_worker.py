"""auto-circuit as a process that is asked: one JSON object a line in, one a line out.

    PYTHON autocircuit_worker.py

Runs inside the environment that setup.sh makes. `circuit.peers.process.AutoCircuit` is the other
end; the benchmarks use it too, so that a model is loaded once and then timed.

    {"do": "load", "model": FOLDER, "rows": [...], "dtype": "float32", "threads": 1, "batch_size": 16}
    {"do": "eap" | "mask-ig" | "eap-ig" | "circuit" | "acdc", ...}    one of auto-circuit's jobs
    {"do": "means"}                                                   the whole model, clean and corrupt

Rows hold token ids, so no tokenizer has a say: `clean`, `corrupt`, `answers`, `wrong_answers`.
Rows of one length share batches; every mean is over rows. A job replies with `seconds`, or, on
`"memory": true`, with `peak_bytes` and `process_peak_bytes` alone. Scores go out as auto-circuit holds them, by
module, except that they are already a mean over rows instead of a sum over batches; the sign is
its own. A fault is `{"error": ...}`, and the next line is read.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from autocircuit_scores import BadInput, difference, eap_ig, edges_by_name, load_hooked, patchable, versions

GRAD_FUNCTIONS = ("logit", "prob")
CHECKED_ROWS = 4


def main() -> int:
    """Answer until standard input ends."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                worker = Worker(**{key: value for key, value in request.items() if key != "do"})
                reply = worker.about()
            elif worker is None:
                raise BadInput("nothing is loaded yet")
            else:
                reply = worker.answer(**request)
        except BadInput as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), file=out, flush=True)
    return 0


class Worker:
    """One model with its rows, and auto-circuit's own functions on them."""

    def __init__(self, model, rows, dtype="float32", threads=1, batch_size=16):
        import torch

        torch.set_num_threads(threads)
        tensors = [{key: torch.tensor(ids) for key, ids in row.items()} for row in rows]
        self.model = patchable(load_hooked(Path(model), tensors[:CHECKED_ROWS], dtype))
        self.edges = edges_by_name(self.model)
        self.loaders = [loader_of(rows) for rows in groups(tensors, batch_size)]
        self.n_rows = len(rows)

    def about(self):
        return {"n_edges": len(self.edges), "n_rows": self.n_rows, "versions": versions()}

    def answer(self, do, memory=False, **options):
        """Do one job; its result with the seconds that it took, or the memory alone."""
        jobs = {
            "means": self.means,
            "eap": self.eap,
            "mask-ig": self.mask_ig,
            "eap-ig": self.eap_ig,
            "circuit": self.circuit,
            "acdc": self.acdc,
        }
        if do not in jobs:
            raise BadInput(f"unknown job {do!r}, expected load, {', '.join(jobs)}")
        if memory:
            return measured_peak(lambda: jobs[do](**options))
        start = time.perf_counter()
        reply = jobs[do](**options)
        return {"seconds": time.perf_counter() - start, **reply}

    def means(self, metric="logit"):
        """m(full) and m(empty): the unpatched model on the clean and on the corrupt prompts."""
        return {"full": self._plain_mean("clean", metric), "empty": self._plain_mean("corrupt", metric)}

    def eap(self, metric="logit"):
        """mask_gradient_prune_scores with mask_val=0: EAP."""
        return self._mask_gradient(metric, mask_val=0.0)

    def mask_ig(self, samples, metric="logit"):
        """mask_gradient_prune_scores with integrated_grad_samples: all masks at k/n together, k = 0..n.

        The sum over points is divided by their number, n + 1.
        """
        found = self._mask_gradient(metric, mask_val=None, integrated_grad_samples=samples)
        return {"scores": scaled(found["scores"], 1 / (samples + 1))}

    def _mask_gradient(self, metric, **options):
        from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores

        check_metric(metric)
        total = self.model.new_prune_scores()
        for loader, share in self._shares():
            found = mask_gradient_prune_scores(
                self.model, loader, official_edges=None, grad_function=metric, answer_function="avg_diff", **options
            )
            for name, values in found.items():
                total[name] += share * values
        return {"scores": lists(total)}

    def eap_ig(self, shares, metric="logit"):
        """EAP-IG at these points, put together from auto-circuit's parts (`autocircuit_scores.eap_ig`)."""
        check_metric(metric)
        return {"scores": lists(eap_ig(self.model, self._shares(), shares, metric))}

    def circuit(self, edges, metric="logit"):
        """Mean metric with every edge that is not named corrupted; run_circuits, tree patch, resample."""
        import torch

        check_metric(metric)
        values = self.model.new_prune_scores()
        for edge in self._named(edges):
            values[edge.dest.module_name][edge.patch_idx] = 1.0
        if not edges:
            return {"mean": self._plain_mean("corrupt", metric)}
        total = 0.0
        for loader, share in self._shares():
            outputs = self._circuit_outputs(loader, len(edges), values)
            (batch,) = loader
            with torch.no_grad():
                total += share * difference(outputs[batch.key], batch, metric).item()
        return {"mean": total}

    def _circuit_outputs(self, loader, n_edges, values):
        from auto_circuit.prune import run_circuits
        from auto_circuit.types import AblationType, PatchType

        outputs = run_circuits(
            self.model, loader, [n_edges], values, patch_type=PatchType.TREE_PATCH, ablation_type=AblationType.RESAMPLE
        )
        ((n_kept, found),) = outputs.items()
        assert n_kept == n_edges
        return found

    def acdc(self, edges, tau):
        """acdc_prune_scores with KL over the given edges in the given order, all others kept.

        auto-circuit sorts edges by layer and keeps the order within a layer, and uses the first batch only.
        """
        import torch
        from auto_circuit.prune_algos.ACDC import acdc_prune_scores
        from ordered_set import OrderedSet

        if len(self.loaders) != 1:
            raise BadInput("auto-circuit's ACDC uses one batch only; give rows of one length, and a batch size for all")
        every, named = self.model.edges, self._named(edges)
        self.model.edges = OrderedSet(named)
        try:
            values = acdc_prune_scores(self.model, self.loaders[0], None, tao_exps=[0], tao_bases=[tau])
        finally:
            self.model.edges = every
        names = dict(zip(named, edges, strict=True))
        order = sorted(named, key=lambda edge: edge.dest.layer, reverse=True)
        kept = [name for edge, name in names.items() if edge.prune_score(values) == torch.inf]
        return {"kept": kept, "order": [names[edge] for edge in order]}

    def _plain_mean(self, side, metric):
        import torch

        check_metric(metric)
        with torch.no_grad():
            return sum(
                share * difference(self.model(getattr(batch, side))[self.model.out_slice], batch, metric).item()
                for loader, share in self._shares()
                for batch in loader
            )

    def _shares(self):
        """The loaders, each with its share of all rows."""
        return [(loader, len(loader.dataset) / self.n_rows) for loader in self.loaders]

    def _named(self, names):
        unknown = [name for name in names if name not in self.edges]
        if unknown:
            raise BadInput(f"no edge {unknown[0]} in auto-circuit's graph ({len(unknown)} unknown)")
        return [self.edges[name] for name in names]


def groups(rows, batch_size):
    """Rows of one length, at most `batch_size` at a time, in the order of lengths."""
    by_length = {}
    for row in rows:
        shape = tuple(len(row[key]) for key in ("clean", "corrupt", "answers", "wrong_answers"))
        if shape[0] != shape[1]:
            raise BadInput(f"clean has {shape[0]} tokens and corrupt {shape[1]}, expected equal")
        by_length.setdefault(shape, []).append(row)
    return [
        group[start : start + batch_size]
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), batch_size)
    ]


def loader_of(rows):
    """auto-circuit's loader with all rows in one batch."""
    from auto_circuit.data import PromptDataLoader, PromptDataset

    columns = [[row[name] for row in rows] for name in ("clean", "corrupt", "answers", "wrong_answers")]
    return PromptDataLoader(PromptDataset(*columns), seq_len=None, diverge_idx=0, batch_size=len(rows), shuffle=False)


def check_metric(metric):
    if metric not in GRAD_FUNCTIONS:
        raise BadInput(f"unknown metric {metric!r}, expected {' or '.join(GRAD_FUNCTIONS)}")


def scaled(scores, factor):
    """Nested lists of numbers, each times a factor."""
    if isinstance(scores, dict):
        return {name: scaled(values, factor) for name, values in scores.items()}
    return [scaled(value, factor) for value in scores] if isinstance(scores, list) else scores * factor


def lists(scores):
    return {name: values.tolist() for name, values in scores.items()}


def measured_peak(step):
    """Peak of the allocator in one run, and of the process so far."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from persona_circuits.circuit.profiling import peak_bytes, process_peak_bytes

    return {"peak_bytes": peak_bytes(step, "cpu"), "process_peak_bytes": process_peak_bytes()}


if __name__ == "__main__":
    sys.exit(main())
