"""Prompt pairs: read, checked against a tokenizer, batched."""

from persona_circuits.circuit.task.aligning import alignment, shared_ends
from persona_circuits.circuit.task.batching import Batch, batches
from persona_circuits.circuit.task.encoding import (
    ALIGNMENTS,
    ALIKE,
    Reader,
    Row,
    answer_id,
    beyond_embedding,
    encode,
    fitting,
    lost_differences,
    misfit,
    prompt_faults,
    token_ids,
    token_offsets,
    unknown_pieces,
    with_swap_rows,
    without_end,
)
from persona_circuits.circuit.task.overlap import Overlap, overlap, overlap_of_prompts, overlap_of_tasks
from persona_circuits.circuit.task.pairs import PromptPair, Span, Task
from persona_circuits.circuit.task.reading import faults_of_pairs, load_task, task_of
from persona_circuits.circuit.task.shipped_files import CONTROLS, MODEL, resolve, shipped

__all__ = [
    "ALIGNMENTS",
    "ALIKE",
    "CONTROLS",
    "MODEL",
    "Batch",
    "Overlap",
    "PromptPair",
    "Reader",
    "Row",
    "Span",
    "Task",
    "alignment",
    "answer_id",
    "batches",
    "beyond_embedding",
    "encode",
    "faults_of_pairs",
    "fitting",
    "load_task",
    "lost_differences",
    "misfit",
    "overlap",
    "overlap_of_prompts",
    "overlap_of_tasks",
    "prompt_faults",
    "resolve",
    "shared_ends",
    "shipped",
    "task_of",
    "token_ids",
    "token_offsets",
    "unknown_pieces",
    "with_swap_rows",
    "without_end",
]
