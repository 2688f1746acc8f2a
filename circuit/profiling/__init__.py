"""Time, memory and shape of a model's passes."""

from persona_circuits.circuit.profiling.benchmark import (
    COLUMNS,
    BenchOptions,
    acdc_row,
    acdc_sample,
    bare_forward,
    bare_passes,
    bench,
    bench_rows,
    held_bytes,
    machine,
    one_batch,
)
from persona_circuits.circuit.profiling.inspection import inspect_model, supported_families
from persona_circuits.circuit.profiling.meter import (
    Cost,
    Step,
    cost_of,
    costs_of,
    peak_bytes,
    process_peak_bytes,
    seconds_of,
)

__all__ = [
    "COLUMNS",
    "BenchOptions",
    "Cost",
    "Step",
    "acdc_row",
    "acdc_sample",
    "bare_forward",
    "bare_passes",
    "bench",
    "bench_rows",
    "cost_of",
    "costs_of",
    "held_bytes",
    "inspect_model",
    "machine",
    "one_batch",
    "peak_bytes",
    "process_peak_bytes",
    "seconds_of",
    "supported_families",
]
