"""Files of circuits and figures: draw, validate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.options import names_of
from persona_circuits.commands.comparing import all_scores
from persona_circuits.commands.options import LATEST, CircuitArgument, DrawnOption, ExportFormat
from persona_circuits.commands.terminal import errors_as_exit_codes, own_pairs, read_task, say

__all__: list[str] = []


def draw(
    circuit: CircuitArgument = LATEST,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="Picture to write: .svg, .png, .pdf or .dot. (default: drawn.svg beside the circuit)"
        ),
    ] = None,
    strongest: DrawnOption = None,
    title: Annotated[str | None, typer.Option(help="Line above the picture. (default: the model's name)")] = None,
    groups: Annotated[
        Path | None, typer.Option("--groups", help="Edges in the colour of their source's group: a file of the page.")
    ] = None,
    width: Annotated[str, typer.Option(help="Scaled to a paper's columns: single, double. (default: not)")] = "",
) -> None:
    """Draw a circuit: layers upward from input to logits, edges by strength and sign."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.drawing import Marks, check_picture
        from persona_circuits.circuit.drawing import draw as picture
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.reporting import title_of

        if file is not None:
            check_picture(file)
        stored = read_circuit(circuit)
        if file is None:
            file = stored.path.with_name("drawn.svg")
            check_picture(file)
        heading = title if title is not None else title_of(stored.record)
        parts: Any = None
        if groups is not None:
            from persona_circuits.circuit.io import by_source, read_groups

            parts = by_source(stored.circuit, read_groups(groups, stored.circuit.graph))
        elif (at_parts := stored.at_parts) is not None:
            from persona_circuits.circuit.evaluation.span_files import edges_at_parts

            parts = edges_at_parts(at_parts) or None
        settings: dict[str, Any] = {"marks": Marks(parts, stored.fringe), "strongest": strongest, "title": heading}
        report = picture(stored.circuit, file, scores=stored.scores, width=width, **settings)
        say(f"{file}: {report.shown} of {report.total} edges drawn")


def figures(
    page: Annotated[Path, typer.Argument(help="An HTML page of figures, or the folder of a result that has one.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; made if not there.")],
    formats: Annotated[str, typer.Option(help="Of png, svg and pdf, with commas.")] = "svg,pdf",
    width: Annotated[
        str, typer.Option(help="single: one column of a paper, 3.3 inches; double: both, 6.9 inches.")
    ] = "double",
) -> None:
    """Draw a result's figures again as a paper takes them: SVG, PDF or PNG, with their font, as wide as a column."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.figures import redraw
        from persona_circuits.circuit.storage import check_output_folder, replace_folder

        check_output_folder(out)
        with replace_folder(out) as staging:
            written = redraw(page, staging, formats=names_of(formats), width=width)
        for path in written:
            say(str(out / path.name))


def validate(
    files: Annotated[
        list[Path], typer.Argument(help="Pair files, circuits, scores, any file of a result, or a result's folder.")
    ],
    against: Annotated[
        Path | None, typer.Option("--against", help="A circuit.json: nodes must be of its model's graph.")
    ] = None,
) -> None:
    """Check pair files, circuits and every other file that is written here; name every fault with its place."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.commands.checking import faults_of_file, files_of, kind_of

        graph = read_circuit(against).circuit.graph if against else None
        faulty = 0
        for path in (file for place in files for file in files_of(place)):
            faults = faults_of_file(path, graph)
            faulty += bool(faults)
            says = f"{len(faults)} fault(s)" if faults else f"valid ({kind_of(path)})"
            say(f"{path}: {says}", err=bool(faults))
            for fault in faults:
                say(f"  {fault}", err=True)
    raise typer.Exit(2 if faulty else 0)


def export(
    circuit: CircuitArgument = LATEST,
    to: Annotated[
        ExportFormat | None,
        typer.Option(help="Format to write. (default: by the ending of --file: .graphml, .dot, .json: eap-ig)"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="File to write; not for mib*. (default: in --out, by its format)")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder to write into; for mib*, which needs it, named TASK_MODEL. (default: the circuit's)"
        ),
    ] = None,
) -> None:
    """Write a circuit as EAP-IG's JSON, GraphML, DOT, nodes; auto-circuit's scores or pairs; a submission to MIB."""
    with errors_as_exit_codes():
        from persona_circuits.circuit import io as files
        from persona_circuits.circuit.storage import check_output_file, check_output_folder

        form, out = _format_and_place(to, file, out, circuit)
        check = check_output_folder if form.startswith("mib") else check_output_file
        check(out)
        stored = files.read_circuit(circuit)
        if form == "eap-ig":
            files.write_eap_ig(stored.circuit, all_scores(stored), out)
        elif form == "graphml":
            files.write_graphml(stored.circuit, stored.scores, out)
        elif form == "nodes":
            files.write_nodes(stored.circuit, out)
        elif form == "auto-circuit":
            from persona_circuits.circuit.peers import write_autocircuit_scores

            write_autocircuit_scores(_every_score(stored), out)
        elif form == "auto-circuit-pairs":
            from persona_circuits.circuit.peers import write_autocircuit_pairs

            source = read_task(own_pairs(stored.record))
            write_autocircuit_pairs(source.of_split((stored.record or {})["task"]["split"]), out)
        elif form.startswith("mib"):
            _export_mib(stored, form, out)
        else:
            from persona_circuits.circuit.drawing import draw as picture

            picture(stored.circuit, out, scores=stored.scores, strongest=max(1, len(stored.circuit)), fmt="dot")
        say(str(out))


ENDINGS = {".graphml": "graphml", ".dot": "dot", ".gv": "dot", ".json": "eap-ig"}
PLACES = {
    "eap-ig": "eap-ig.json",
    "graphml": "circuit.graphml",
    "dot": "circuit.dot",
    "nodes": "nodes.json",
    "auto-circuit": "auto-circuit.safetensors",
    "auto-circuit-pairs": "auto-circuit-pairs.json",
}


def _format_and_place(to: str | None, file: Path | None, out: Path | None, circuit: Path) -> tuple[str, Path]:
    """The format and the place to write to; where only one is given, it determines the other."""
    from persona_circuits.circuit.errors import OptionError

    mib = to is not None and to not in PLACES
    if file is None and out is not None and not mib and out.suffix and not out.is_dir():
        file, out = out, None  # what --out meant once
    if file is not None and out is not None:
        raise OptionError("--file and --out both say where it is written; give one of them")
    if mib and out is None:
        raise OptionError(f"--to {to} writes a folder named TASK_MODEL; give it as --out")
    if to is None:
        if file is None:
            raise OptionError(f"give --to, one of {', '.join(PLACES)}, or --file with the ending of a format")
        if file.suffix.lower() not in ENDINGS:
            known = ", ".join(f"{ending} ({name})" for ending, name in ENDINGS.items())
            raise OptionError(f"--file {file} does not tell a format by its ending, as {known} do; give --to")
        return ENDINGS[file.suffix.lower()], file
    if file is not None:
        return to, file
    folder = out or (circuit if circuit.is_dir() else circuit.parent)
    return to, folder if mib else folder / PLACES[to]


def _export_mib(stored: Any, to: str, out: Path) -> None:
    """Importances of edges or of nodes, or the nine circuits; all scores of the run are needed."""
    from persona_circuits.circuit.errors import OptionError
    from persona_circuits.circuit.evaluation.curves import NodeScores
    from persona_circuits.circuit.peers import mib
    from persona_circuits.circuit.task import resolve

    scores, name = _every_score(stored), stored.model_name()
    if name is None:
        raise OptionError(f"{stored.path} does not say which model it is of, and MIB's files name its d_model")
    width = mib.stream_width(resolve(name))
    if to == "mib-circuits":
        mib.write_circuits(scores, out, d_model=width)
    else:
        mib.write_importances(NodeScores.of(scores) if to == "mib-nodes" else scores, out, d_model=width)


def _every_score(stored: Any) -> Any:
    from persona_circuits.circuit.errors import OptionError

    scores = all_scores(stored)
    if scores is None:
        raise OptionError(f"{stored.path} has no scores; write those of a run that scored its edges")
    return scores
