"""Prompt pairs: read, checked against a tokenizer, batched."""

from persona_circuits.circuit.task.aligning import alignment, shared_ends
from persona_circuits.circuit.task.batching import Batch, batches
from persona_circuits.circuit.task.encoding import (
    ALIGNMENTS,
    ALIKE,
    Row,
    answer_id,
    encode,
    fitting,
    misfit,
    with_swap_rows,
)
from persona_circuits.circuit.task.form_reading import read_forms
from persona_circuits.circuit.task.forms import Forms, FormTable, form_table, forms_left_out, forms_of
from persona_circuits.circuit.task.overlap import Overlap, overlap, overlap_of_prompts, overlap_of_tasks
from persona_circuits.circuit.task.pairs import PromptPair, Span, Task, without_forms
from persona_circuits.circuit.task.reading import faults_of_pairs, load_task, task_of
from persona_circuits.circuit.task.shipped_files import CONTROLS, MODEL, resolve, shipped
from persona_circuits.circuit.task.tokens import (
    Reader,
    beyond_embedding,
    lost_differences,
    n_vocab_of,
    prompt_faults,
    token_ids,
    token_offsets,
    unknown_pieces,
    without_end,
)

__all__ = [
    "ALIGNMENTS",
    "ALIKE",
    "CONTROLS",
    "MODEL",
    "Batch",
    "FormTable",
    "Forms",
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
    "form_table",
    "forms_left_out",
    "forms_of",
    "load_task",
    "lost_differences",
    "misfit",
    "n_vocab_of",
    "overlap",
    "overlap_of_prompts",
    "overlap_of_tasks",
    "prompt_faults",
    "read_forms",
    "resolve",
    "shared_ends",
    "shipped",
    "task_of",
    "token_ids",
    "token_offsets",
    "unknown_pieces",
    "with_swap_rows",
    "without_end",
    "without_forms",
]
