"""Options that commands share: their types, names and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "LATEST",
    "AblationName",
    "AlignOption",
    "BarOption",
    "BaselineOption",
    "BatchOption",
    "CircuitArgument",
    "ConcurrencyOption",
    "DeviceOption",
    "DtypeOption",
    "EndpointOption",
    "ExportFormat",
    "FittingOption",
    "JsonOption",
    "KeyOption",
    "LimitOption",
    "MaxMemoryOption",
    "MaxNewOption",
    "MaxQuestionsOption",
    "Method",
    "MetricName",
    "ModelOption",
    "PairsOption",
    "PersonasOption",
    "PositionsOption",
    "Prune",
    "QuestionWordingsOption",
    "QuestionsOption",
    "RandomOption",
    "RetriesOption",
    "SamplesOption",
    "SeedOption",
    "StopOption",
    "TemperatureOption",
    "TemplateOption",
    "TimeoutOption",
    "TopPOption",
    "UrlOption",
    "WhereOption",
    "WordingsOption",
]

Method = Literal["eap", "eap-ig", "exact", "random"]
Prune = Literal["threshold", "top-n", "greedy", "acdc", "eap-acdc"]
AblationName = Literal["corrupt", "neutral", "zero", "mean", "span-mean", "optimal"]
MetricName = Literal["persona-divergence", "logit-diff", "prob-diff", "kl"]
ExportFormat = Literal[
    "eap-ig",
    "graphml",
    "dot",
    "nodes",
    "auto-circuit",
    "auto-circuit-pairs",
    "mib",
    "mib-nodes",
    "mib-circuits",
]
Dtype = Literal["float32", "bfloat16-weights", "bfloat16", "float16", "float64"]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder or hub name. (default: the model that is shipped)")
]
PairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", help="Prompt pairs: JSON Lines, or auto-circuit's JSON. (default: the shipped model's)"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps; balanced: over all GPUs.")]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Of weights and computation; bfloat16-weights holds the weights in half the room and computes in float32.",
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory", help="Take so many prompts and circuits at a time that weights and work stay below, e.g. 8GiB."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Prompts per pass.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of random circuits, random scores and bootstraps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
RandomOption = Annotated[int, typer.Option("--n-random", help="Random circuits of the same size to compare with.")]
BarOption = Annotated[
    float | None, typer.Option("--min-faithfulness", help="Exit with 1 if faithfulness is below this bar.")
]
CircuitArgument = Annotated[Path, typer.Argument(help="circuit.json, its folder, or EAP-IG's JSON.")]
PositionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--positions",
        help="persona-end, question-end, question-word or prompt-end; may be repeated. (default: all there are)",
    ),
]
PersonasOption = Annotated[
    Path | None,
    typer.Option(
        "--personas",
        help="JSON Lines, CSV, or assistant-axis JSON (file or folder). (default: the shipped model's; with --model "
        "datasets/vector_personas.jsonl)",
    ),
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        help="JSON Lines, CSV, or assistant-axis JSON. (default: the shipped model's; with --model "
        "datasets/vector_questions.jsonl)",
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="raw, chat, or a file. (default: chat if the tokenizer has one, else raw)"),
]
WordingsOption = Annotated[int, typer.Option("--wordings", help="Wordings of each persona; 0: all.")]
QuestionWordingsOption = Annotated[int, typer.Option("--question-wordings", help="Wordings of each question; 0: all.")]
SamplesOption = Annotated[int, typer.Option("--samples", help="Responses to every prompt.")]
MaxQuestionsOption = Annotated[int | None, typer.Option("--max-questions", help="The first so many questions.")]
BaselineOption = Annotated[
    str | None, typer.Option("--baseline", help="Persona to compare with. (default: 'default', or no persona at all)")
]
MaxNewOption = Annotated[int, typer.Option("--max-new-tokens", help="Tokens of a response at most.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of sampling; 0: the most likely token.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Sample among the tokens that hold this share.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Text that ends a response; may be repeated. (default: \\n, none for chat)"),
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-model", help="Ask this model of an OpenAI-compatible endpoint.")
]
UrlOption = Annotated[
    str | None, typer.Option("--base-url", help="The endpoint's address. (default: $OPENAI_BASE_URL, else OpenAI's)")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", help="Better left to $OPENAI_API_KEY: other users of a machine see options."),
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", help="Requests to the endpoint at a time.")]
RetriesOption = Annotated[int, typer.Option("--max-retries", help="More tries after 429, 5xx and cut connections.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer to begin or go on.")]
LimitOption = Annotated[
    Literal["max_tokens", "max_completion_tokens"],
    typer.Option("--limit-field", help="What the endpoint calls the limit of an answer's length."),
]
AlignOption = Annotated[
    Literal["equal", "right"],
    typer.Option("--align", help="equal: prompts of one length; right: unequal personas, aligned on the common end."),
]
WhereOption = Annotated[
    list[str] | None, typer.Option("--where", help="Only pairs with this value, KEY=VALUE; may be repeated.")
]
LATEST = Path("runs/discover")


FittingOption = Annotated[
    bool, typer.Option("--fitting", help="Go on with the pairs that fit the model; the others are counted.")
]
