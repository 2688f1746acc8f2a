"""A metric of many circuits on many batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit import parallel
from persona_circuits.circuit.forward.patched import logits_of, masks_per_pass
from persona_circuits.circuit.forward.prepared import Prepared
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.subgraph import SpanCircuit
from persona_circuits.metrics import Metric

__all__ = ["measure", "measure_rows"]


def measure(
    model: Model,
    prepared: Iterable[Prepared],
    masks: Sequence[np.ndarray | SpanCircuit],
    metric: Metric,
    *,
    max_bytes: int | None = None,
) -> Float[np.ndarray, "mask row"]:
    """The metric of every row, of all processes, under every circuit.

    Parameters
    ----------
    prepared
        This process's batches; each is used once, so a generator keeps only one of them in memory.
    masks
        Kept edges of each circuit, bool ``[n_src, n_dst]``; or circuits of edges at parts of the prompt.
    max_bytes
        Bound on the bytes of node contributions in memory at a time; as many circuits share a
        pass as fit. By default 64 MiB on a CPU and 1 GiB elsewhere.

    Returns
    -------
    Float64 array ``[mask, row]``, columns in the order of the rows' ``index``.

    Raises
    ------
    ModelError
        One circuit does not fit the memory, or a value is not finite.

    Examples
    --------
    >>> prepared = [prepare(model, batch) for batch in batches(encode(task, model), 8, "cpu")]
    >>> full, empty = Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask
    >>> measure(model, prepared, [full, empty], METRICS["logit-diff"]).mean(axis=1).round(2).tolist()
    [2.0, -2.0]
    """
    columns = parallel.gathered(measure_rows(model, prepared, masks, metric, max_bytes=max_bytes))
    return np.stack([columns[index] for index in sorted(columns)], axis=1)


def measure_rows(
    model: Model,
    prepared: Iterable[Prepared],
    masks: Sequence[np.ndarray | SpanCircuit],
    metric: Metric,
    *,
    max_bytes: int | None = None,
) -> dict[int, Float[np.ndarray, " mask"]]:
    """The metric under every circuit, of this process's own rows by their ``index``."""
    columns: dict[int, np.ndarray] = {}
    for item in prepared:
        values = [
            metric(logits, item.targets).cpu().double().numpy()
            for chunk in _chunks(masks, masks_per_pass(model, item, max_bytes))
            for logits in logits_of(model, item, chunk)
        ]
        rows = np.stack(values).T
        check_finite(rows, item.batch.name, f"values of {metric.name}")
        columns |= dict(zip(item.batch.indices, rows, strict=True))
    return columns


def _chunks(masks: Sequence[np.ndarray | SpanCircuit], size: int) -> Iterator[list[np.ndarray | SpanCircuit]]:
    items = iter(masks)
    while chunk := list(islice(items, size)):
        yield chunk
