"""The command line as its users meet it: results, files, exit codes, and what it says to bad input."""

import json
import re
import shutil

import pytest
from conftest import DATA, ROOT
from typer.testing import CliRunner

import persona_circuits
from persona_circuits.cli import app
from persona_circuits.commands.names import complete_model

TINY, PAIRS = str(DATA / "tiny-gpt2"), str(DATA / "tiny_pairs.json")
RUN = ["--model", TINY, "--pairs", PAIRS]
FILES = ["circuit.json", "graph.png", "graph.svg", "real_circuits_1.json", "scores.safetensors", "summary.json"]


PLAIN = ["--only-faithfulness", "--no-save"]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(says, *arguments, code=2):
    """The command ends with ``code``, one message that says so, and no traceback."""
    done = call(*arguments)
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = call("discover", *RUN, "--out", out, "--threshold", "0.05", "--json")
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


def test_discover_writes_its_files_and_says_what_it_found(found):
    out, summary = found
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "summary.json").read_text()) == {k: v for k, v in summary.items() if k != "out"}
    assert summary["connected"]
    assert summary["n_pairs"] == 8
    assert not summary["held_out"]
    assert summary["nodes"] == json.loads((out / "real_circuits_1.json").read_text())["nodes"]
    assert (out / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_validate_accepts_what_discover_writes(found):
    out, _ = found
    done = call("validate", out / "circuit.json", out / "real_circuits_1.json", "--against", out)
    assert done.exit_code == 0
    assert done.stdout.count("valid") == 2


def test_validate_shows_all_faults_of_a_pair_file(tmp_path):
    good = {"clean": "a b", "corrupt": "a c", "answers": [" d"], "wrong_answers": [" e"]}
    rows = [good, {**good, "answers": []}, {"clean": "a b", "corrupted": "a c", "answers": [" d"], "wrong": [" e"]}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *[{**good, "corrupt": 3}] * 30]))
    done = fails(r"pairs\.jsonl: 33 fault\(s\)", "validate", path)
    assert "line 2: 'answers' must be a non-empty list of strings\n" in done.stderr
    assert "line 3: 'corrupt' must be a non-empty string; is it the key 'corrupted'?" in done.stderr
    assert len(done.stderr.splitlines()) == 34
    assert "valid (pairs)" in call("validate", PAIRS).stdout


def test_validate_knows_every_file_of_a_result(found, tmp_path):
    out, _ = found
    done = call("validate", out)
    assert done.exit_code == 0, done.stderr
    assert re.findall(r"(\w+\.\w+): valid \((.*)\)", done.stdout) == [
        ("circuit.json", "circuit"),
        ("real_circuits_1.json", "circuit"),
        ("scores.safetensors", "scores"),
        ("summary.json", "result"),
    ]
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    fails("row 3: 1 cells, expected 2", "validate", tmp_path / "t.csv")
    (tmp_path / "r.json").write_text('{"a": NaN}')
    fails("1 fault", "validate", tmp_path / "r.json")
    (tmp_path / "p.html").write_text("<html>")
    fails("no figures to draw again", "validate", tmp_path / "p.html")


def test_pictures_and_exports_have_places_beside_the_run(found, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(found[0], run)
    assert call("draw", run).exit_code == 0
    assert (run / "drawn.svg").is_file()
    assert call("export", run, "--to", "graphml").exit_code == 0
    assert (run / "circuit.graphml").is_file()
    assert call("export", run, "--file", tmp_path / "x.dot").exit_code == 0
    assert (tmp_path / "x.dot").read_text().startswith(("digraph", "strict digraph"))
    fails("does not tell a format by its ending", "export", run, "--file", tmp_path / "x.txt")
    (tmp_path / "into").mkdir()
    assert call("export", run, "--to", "nodes", "--out", tmp_path / "into").exit_code == 0
    assert call("export", run, "--to", "nodes", "--file", tmp_path / "n.json").exit_code == 0
    assert call("export", run, "--to", "nodes", "--out", tmp_path / "former.json").exit_code == 0
    same = [tmp_path / name for name in ("n.json", "former.json", "into/nodes.json")]
    assert len({path.read_text() for path in same}) == 1
    fails("both say where it is written", "export", run, "--file", tmp_path / "a.dot", "--out", tmp_path / "into")
    fails("give --to, one of eap-ig", "export", run)
    fails("writes a folder named TASK_MODEL", "export", run, "--to", "mib")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["discovr"], "Did you mean 'discover'"),
        (["discover", "--metod", "eap"], "--method"),
        (["discover", "--method", "eapig"], "did you mean 'eap-ig'"),
        (["curves", "--scorers", "eapig"], "did you mean 'eap-ig'"),
        (["discover", *RUN, "--where", "splitt=train"], "did you mean 'split'"),
    ],
    ids=["command", "option", "method", "scorer", "key"],
)
def test_a_misspelt_name_is_met_with_the_right_one(tmp_path, arguments, says):
    done = call(*arguments, *(["--out", tmp_path / "x"] if len(arguments) > 3 else []))
    assert done.exit_code == 2
    assert says in re.sub(r"[\s│]+", " ", done.stderr)


def test_former_names_of_options_are_read_and_not_shown():
    from typer.main import get_command

    from persona_circuits.commands.names import FORMER

    commands = get_command(app).commands
    for name, former in FORMER.items():
        options = {flag for one in commands[name].params for flag in one.opts}
        assert not options & former.keys(), name
        assert set(former.values()) <= options, name
    done = call("collapse", "--controls=none.jsonl", "--pairs", PAIRS, "--model", TINY)
    assert "none.jsonl" in done.stderr


CHECKED = ("discover", "curves", "collapse", "explain", "probe", "lens", "patch", "evaluate")
CHECKED += ("steer", "neurons", "bridge", "specificity", "study")


@pytest.mark.parametrize("command", CHECKED)
def test_pairs_are_checked_against_the_tokenizer_before_the_weights_are_read(command, found, tmp_path, monkeypatch):
    from persona_circuits.circuit import model

    row = {"clean": "a b", "corrupt": "c b", "answers": [" a b c"], "wrong_answers": [" d"]}
    row |= {"id": "1", "question": "q", "persona_a": "x", "persona_b": "y"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(model, "load_model", None)
    where = ["--model", TINY, "--pairs", tmp_path / "pairs.jsonl"]
    run = [found[0]] if command in ("evaluate", "bridge") else ["--out", tmp_path / "out"]
    if command == "specificity":
        for name in ("a", "b"):
            shutil.copytree(found[0], tmp_path / name)
            record = json.loads((tmp_path / name / "circuit.json").read_text())
            record["task"]["source"] = str(tmp_path / "pairs.jsonl")
            (tmp_path / name / "circuit.json").write_text(json.dumps(record))
        run, where = [tmp_path / "a", tmp_path / "b"], where[:2]
    fails("expected one", command, *run, *where)


def test_a_template_is_checked_before_the_weights_are_read(tmp_path, monkeypatch):
    from persona_circuits.circuit import model

    said = {"persona": "p", "question": "q", "text": "r", "prompt": "q"}
    (tmp_path / "responses.jsonl").write_text(json.dumps(said) + "\n")
    monkeypatch.setattr(model, "load_model", None)
    for command in ("respond", "vectors"):
        fails("no chat template", command, "--model", TINY, "--template", "chat", "--out", tmp_path / "out")


def test_out_is_a_folder_everywhere():
    from typer.main import get_command

    flags = {
        (name, one.help)
        for name, command in get_command(app).commands.items()
        for one in command.params
        if "--out" in one.opts
    }
    assert len(flags) > 10
    assert [(name, says) for name, says in flags if not says.startswith("Folder")] == []


def test_pairs_without_an_effect_stop_the_search_unless_it_is_forced(tmp_path):
    rows = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    turned = [{**row, "clean": row["corrupt"], "corrupt": row["clean"]} for row in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *turned]))
    search = ("discover", "--model", TINY, "--pairs", path, "--out", tmp_path / "x", "--threshold", "0.05")
    fails(r"nothing to find: the effect is .* on 16 pair\(s\): .*; --force searches all the same$", *search)
    assert not (tmp_path / "x").exists()
    fails("nothing to find", *search, "--json")


def test_scores_are_used_again_for_another_threshold(found, tmp_path):
    out, _ = found
    done = call("discover", *RUN, "--out", tmp_path / "x", "--threshold", "0.2", "--scores", out)
    assert done.exit_code == 0, done.output
    assert f"scores      used again, of {out / 'scores.safetensors'}" in done.stdout
    fails("of other method", "discover", *RUN, "--out", tmp_path / "y", "--method", "exact", "--scores", out)
    fails("score file .* cannot be read", "discover", *RUN, "--out", tmp_path / "y", "--scores", tmp_path / "none")


def test_a_stopped_search_says_that_its_scores_are_kept(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("persona_circuits.circuit.discovery.stages.prune", stop)
    done = call("discover", *RUN, "--out", tmp_path / "x", "--threshold", "0.05")
    assert done.exit_code == 130
    assert f"stopped: the scores of all edges are kept in {tmp_path / 'x' / 'scores.state'}" in done.stderr
    monkeypatch.undo()
    done = call("discover", *RUN, "--out", tmp_path / "x", "--threshold", "0.05")
    assert "scores.state" in done.stdout
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == FILES


def test_same_seed_same_bytes(found, tmp_path):
    out, _ = found
    assert call("discover", *RUN, "--out", tmp_path / "b", "--threshold", "0.05").exit_code == 0
    for name in FILES:
        assert (tmp_path / "b" / name).read_bytes() == (out / name).read_bytes(), name


def test_tables_for_people(tmp_path):
    done = call(
        "discover", *RUN, "--out", tmp_path / "x", "--prune", "greedy", "--top-n", "40", "--metric", "logit-diff"
    )
    assert done.exit_code == 0
    for part in ("divergence", "40 of 262 edges", "faithfulness", "complement", "random, matched (10)", "not held out"):
        assert part in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "eap", "--prune", "top-n", "--top-n", "50"],
        ["--method", "exact", "--prune", "threshold", "--threshold", "0.02", "--threshold-on", "score"],
        ["--method", "random", "--prune", "greedy", "--top-n", "30"],
        ["--method", "eap-ig", "--steps", "2", "--ig-rule", "authors", "--metric", "kl", "--threshold", "0.1"],
        ["--method", "eap", "--prune", "eap-acdc", "--threshold", "0.1", "--metric", "prob-diff"],
        ["--prune", "acdc", "--metric", "kl", "--threshold", "0.1", "--candidates", "16"],
    ],
    ids=lambda options: " ".join(options[:4]),
)
def test_every_method_and_pruner_runs(tmp_path, options):
    done = call("discover", *RUN, "--force", "--out", tmp_path / "x", "--n-random", "2", *options, "--json")
    assert done.exit_code == 0, done.output
    assert call("validate", tmp_path / "x" / "circuit.json").exit_code == 0
    method = json.loads((tmp_path / "x" / "circuit.json").read_text())["method"]
    for name, value in zip(options[::2], options[1::2], strict=True):
        key = {"--method": "scores", "--steps": "steps", "--ig-rule": "ig_rule", "--prune": "prune"}.get(name)
        if key and not (name == "--method" and method["prune"] == "acdc"):
            assert str(method[key]) == value


def test_options_tell_their_values_apart(tmp_path):
    """An option that changes nothing would give the same scores."""
    seen = {}
    for name, options in {
        "base": [],
        "steps": ["--steps", "3"],
        "rule": ["--ig-rule", "authors"],
        "method": ["--method", "eap"],
        "metric": ["--metric", "prob-diff"],
        "no swap": ["--metric", "logit-diff"],
        "exact": ["--method", "exact"],
        "seed 1": ["--method", "random", "--seed", "1"],
        "seed 2": ["--method", "random", "--seed", "2"],
        "bfloat16": ["--dtype", "bfloat16"],
    }.items():
        out = tmp_path / name
        done = call(
            "discover", "--force", *RUN, "--out", out, "--prune", "top-n", "--top-n", 60, "--n-random", 0, *options
        )
        assert done.exit_code == 0, done.output
        seen[name] = (out / "scores.safetensors").read_bytes()
    assert len(set(seen.values())) == len(seen)


def test_an_empty_circuit_is_reported_not_crashed_on(tmp_path):
    done = call("discover", "--force", *RUN, "--out", tmp_path / "x", "--threshold", "1000", "--threshold-on", "score")
    assert done.exit_code == 0, done.output
    assert "the circuit is empty" in done.stdout
    assert json.loads((tmp_path / "x" / "real_circuits_1.json").read_text()) == {"nodes": ["input"]}
    assert call("validate", tmp_path / "x" / "circuit.json").exit_code == 0
    done = call("evaluate", tmp_path / "x", "--pairs", PAIRS, "--quick")
    assert done.exit_code == 0, done.output
    assert call("validate", tmp_path / "x" / "circuit.json").exit_code == 0


def test_held_out_pairs_are_used(tmp_path):
    items = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    lines = [json.dumps({**item, "split": "test" if i % 2 else "train"}) for i, item in enumerate(items)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    done = call(
        "discover", "--force", "--model", TINY, "--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "x", "--json"
    )
    summary = json.loads(done.stdout)
    assert summary["held_out"]
    assert [(r["split"], r["n_pairs"]) for r in summary["faithfulness"]] == [("train", 4), ("test", 4)]
    whole = call(
        "discover", "--force", "--model", TINY, "--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "y", "--json",
        "--train-split", "test", "--eval-split", "all",
    )  # fmt: skip
    summary = json.loads(whole.stdout)
    assert [(r["split"], r["n_pairs"]) for r in summary["faithfulness"]] == [("test", 4), ("all", 8)]
    assert not summary["held_out"]


def test_a_missed_bar_is_exit_code_1_and_files_are_there(tmp_path):
    fails("below the bar of 5", "discover", *RUN, "--out", tmp_path / "x", "--min-faithfulness", "5", code=1)
    assert (tmp_path / "x" / "circuit.json").exists()
    done = call(
        "discover",
        "--force",
        *RUN,
        "--out",
        tmp_path / "x",
        "--prune",
        "greedy",
        "--top-n",
        262,
        "--min-faithfulness",
        ".9",
    )
    assert done.exit_code == 0, done.output


def test_evaluate_repeats_discovers_numbers(found, tmp_path):
    out, summary = found
    done = call("evaluate", out, "--pairs", PAIRS, *PLAIN, "--json", "--report", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (report.pop("held_out"), report.pop("shared")) == (summary["held_out"], summary["shared"])
    assert report == summary["faithfulness"][-1]
    assert "faithfulness on 8 pairs" in call("evaluate", out, *PLAIN).stdout
    fails("below the bar", "evaluate", out, *PLAIN, "--min-faithfulness", "9", code=1)
    other = json.loads(call("evaluate", out, *PLAIN, "--metric", "kl", "--n-random", "0", "--json").stdout)
    assert (other["metric"], other["random"]) == ("kl", [])


def test_evaluate_puts_the_circuit_to_the_test_and_writes_the_answer_into_its_file(found, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(found[0], folder)
    for _ in range(2):
        done = call("evaluate", folder, "--quick", "--n-random", "2", "--by", "id")
        assert done.exit_code == 0, done.output
    for part in (
        "equivalence",
        "independence",
        "sufficiency",
        "necessity",
        "minimality",
        "completeness",
        "transfer by id",
    ):
        assert part in done.stdout
    assert call("validate", folder / "circuit.json").exit_code == 0
    (one,) = json.loads((folder / "circuit.json").read_text())["evaluations"]
    assert (one["split"], one["metric"], one["ablation"], one["quick"]) == (
        "all",
        "persona-divergence",
        "corrupt",
        True,
    )
    assert {outcome["name"] for outcome in one["tests"]["outcomes"]} >= {"equivalence", "minimality"}
    assert [part["n_pairs"] for part in one["transfer"]["id"]] == [1] * 8
    before = (folder / "circuit.json").read_bytes()
    assert call("evaluate", folder, *PLAIN).exit_code == 0
    assert (folder / "circuit.json").read_bytes() == before
    fails("has a 'colour'", "evaluate", folder, "--quick", "--by", "colour")
    fails("must be KEY=VALUE", "evaluate", folder, "--quick", "--where", "colour")


def test_specificity_of_two_runs(found, tmp_path):
    other = tmp_path / "other"
    done = call(
        "discover", "--force", *RUN, "--out", other, "--metric", "logit-diff", "--method", "eap", "--n-random", "0"
    )
    assert done.exit_code == 0, done.output
    done = call("specificity", found[0], other, "--names", "persona,plain", "--out", tmp_path / "matrix")
    assert done.exit_code == 0, done.output
    assert "left of plain" in done.stdout
    cells = json.loads((tmp_path / "matrix" / "specificity.json").read_text())["cells"]
    assert [(cell["circuit"], cell["contrast"]) for cell in cells][:2] == [("persona", "persona"), ("persona", "plain")]
    assert (tmp_path / "matrix" / "specificity.png").read_bytes()[:4] == b"\x89PNG"
    assert "--names persona,plain" in (tmp_path / "matrix" / "index.html").read_text()
    fails("two or more circuits", "specificity", other)
    made = call(
        "figures", tmp_path / "matrix", "--out", tmp_path / "paper", "--width", "single", "--formats", "svg, pdf"
    )
    assert made.exit_code == 0, made.output
    assert sorted(path.name for path in (tmp_path / "paper").iterdir()) == ["specificity.pdf", "specificity.svg"]
    fails("holds no HTML page of figures", "figures", other, "--out", tmp_path / "none")
    fails("'gif' is no format", "figures", tmp_path / "matrix", "--out", tmp_path / "none", "--formats", "gif")
    assert not (tmp_path / "none").exists()


def test_draw_and_export(found, tmp_path):
    out, _ = found
    for suffix, magic in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("dot", b"digraph")):
        done = call("draw", out, "--out", tmp_path / f"c.{suffix}", "--strongest", "5", "--title", "A title")
        assert done.exit_code == 0, done.output
        assert "5 of" in done.stdout
        assert magic in (tmp_path / f"c.{suffix}").read_bytes()[:200]
    for kind, name in (("eap-ig", "g.json"), ("graphml", "g.graphml"), ("dot", "g.gv"), ("nodes", "n.json")):
        assert call("export", out, "--to", kind, "--out", tmp_path / name).exit_code == 0
    edges = json.loads((tmp_path / "g.json").read_text())["edges"]
    assert all(info["score"] != 0 for info in edges.values()), "scores of edges outside the circuit go along"
    assert (tmp_path / "n.json").read_bytes() == (out / "real_circuits_1.json").read_bytes()
    assert call("evaluate", tmp_path / "g.json", *RUN, "--only-faithfulness").exit_code == 0
    assert call("draw", tmp_path / "g.json", "--out", tmp_path / "peer.svg").exit_code == 0
    fails("does not say which model", "evaluate", tmp_path / "g.json", "--pairs", PAIRS)
    fails("does not say which pairs", "evaluate", tmp_path / "g.json", "--model", TINY)


def test_other_weights_are_noted_and_other_shapes_refused(found, tmp_path, craftgpt):
    out, _ = found
    fails("the circuit is of a model with 3 layers", "evaluate", out, "--model", craftgpt.name, "--pairs",
          DATA / "craftgpt_pairs.json")  # fmt: skip
    record = json.loads((out / "circuit.json").read_text())
    record["model"]["fingerprint"] = "0" * 64
    (tmp_path / "circuit.json").write_text(json.dumps(record))
    done = call("evaluate", tmp_path, "--pairs", PAIRS, *PLAIN)
    assert done.exit_code == 0
    assert "other weights" in done.stderr


def test_validate_names_every_fault_with_its_place(found, tmp_path):
    out, _ = found
    record = json.loads((out / "circuit.json").read_text())
    record["edges"][0]["edge"] = "a9.h9->logits"
    (tmp_path / "bad.json").write_text(json.dumps(record))
    (tmp_path / "nodes.json").write_text('{"nodes": ["input", "a8.h1"]}')
    done = fails("node a9.h9 is not in this model", "validate", tmp_path / "bad.json", out / "circuit.json")
    assert "circuit.json: valid" in done.stdout
    fails("a8.h1 is not in this model", "validate", tmp_path / "nodes.json", "--against", out)
    assert call("validate", tmp_path / "nodes.json").exit_code == 0


@pytest.mark.parametrize(
    ("says", "options"),
    [
        (r"cannot be read \(No such file", ["--model", TINY, "--pairs", "none.jsonl"]),
        (r"line 2: not JSON", ["--model", TINY, "--pairs", "BROKEN"]),
        (r"the clean prompt has 14 tokens and the corrupt one 15", ["--model", TINY, "--pairs", "UNEQUAL"]),
        (r"is 2 tokens here", ["--model", TINY, "--pairs", "TWO"]),
        (r"no weights; expected model.safetensors", ["--model", "HOLLOW", "--pairs", PAIRS]),
        (r"does not exist", ["--model", "./nowhere", "--pairs", PAIRS]),
        (r"threshold must be a number that is not negative", [*RUN, "--threshold", "-1"]),
        (r"threshold must be a number that is not negative", [*RUN, "--threshold", "nan"]),
        (r"zero gradient at the clean run", [*RUN, "--method", "eap", "--metric", "kl"]),
        (r"--top-n has no effect", [*RUN, "--top-n", "5"]),
        (r"--threshold has no effect", [*RUN, "--prune", "greedy", "--top-n", "5", "--threshold", "1"]),
        (r"needs --top-n", [*RUN, "--prune", "greedy"]),
        (r"needs --threshold, in units", [*RUN, "--threshold-on", "score"]),
        (r"from 1 to 262", [*RUN, "--prune", "top-n", "--top-n", "263"]),
        (r"--batch-size must be at least 1", [*RUN, "--batch-size", "0"]),
        (r"Invalid value for '--seed'", [*RUN, "--seed", "-1"]),
        (r"Invalid value for '--strongest'", [*RUN, "--strongest", "0"]),
        (r"--n-random must not be negative", [*RUN, "--n-random", "-1"]),
        (r"no pair of split 'dev'", [*RUN, "--train-split", "dev"]),
        (r"device 'cuda:9' cannot be used", [*RUN, "--device", "cuda:9"]),
        (r"--model needs --pairs", ["--model", TINY]),
        (r"Invalid value for '--method'", [*RUN, "--method", "magic"]),
        (r"Invalid value for '--threshold'", [*RUN, "--threshold", "much"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_input_to_discover(tmp_path, says, options):
    pair = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"][0]
    good = json.dumps(pair)
    for name, text in {
        "BROKEN": good + "\n{oops",
        "UNEQUAL": json.dumps({**pair, "corrupt": pair["corrupt"] + " red"}),
        "TWO": json.dumps({**pair, "answers": [" red blue"]}),
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "HOLLOW").mkdir()
    (tmp_path / "HOLLOW" / "config.json").write_text((DATA / "tiny-gpt2" / "config.json").read_text())
    places = {name: str(tmp_path / f"{name}.jsonl") for name in ("BROKEN", "UNEQUAL", "TWO")}
    places["HOLLOW"] = str(tmp_path / "HOLLOW")
    out = tmp_path / "out"
    fails(says, "discover", "--out", out, *(places.get(option, option) for option in options))
    assert not out.exists()


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    fails("output folder .* cannot be written", "discover", *RUN, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    fails("output folder .* cannot be written", "discover", *RUN, "--out", "/proc/none")


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("cannot be read", ["evaluate", "none.json"]),
        ("cannot be read", ["draw", "none.json", "--out", "x.svg"]),
        ("lists nodes only", ["draw", "NODES", "--out", "x.svg"]),
        ("cannot be read", ["export", "none.json", "--to", "nodes", "--out", "x.json"]),
        ("Invalid value for '--to'", ["export", "none.json", "--to", "pickle", "--out", "x"]),
        ("cannot write|cannot be written", ["draw", "GOOD", "--out", "/no/where/x.svg"]),
        ("format", ["draw", "GOOD", "--out", "x.bmp"]),
        ("cannot write", ["export", "GOOD", "--to", "nodes", "--out", "/no/where/x.json"]),
    ],
)
def test_bad_input_to_the_others(found, tmp_path, says, arguments):
    out, _ = found
    places = {"NODES": str(out / "real_circuits_1.json"), "GOOD": str(out)}
    fails(says, *(places.get(argument, argument) for argument in arguments))


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("persona_circuits.circuit.discovery.discover", broken)
    done = call("discover", "--force", *RUN, "--out", tmp_path / "x")
    assert isinstance(done.exception, ZeroDivisionError)


def test_the_planted_models_in_one_table(monkeypatch):
    from persona_circuits.models.planted import planted_models

    chosen = [one for one in planted_models() if one.name in ("copy", "saturated")]
    monkeypatch.setattr("persona_circuits.models.planted.circuits.planted_models", lambda: chosen)
    rows = json.loads(call("ground-truth", "--json").stdout)
    assert {row["method"] for row in rows} >= {"eap", "eap-ig", "exact", "random", "acdc"}
    assert all(row["auroc"] >= 0.95 for row in rows if row["method"] in ("exact", "eap-ig", "acdc"))
    chosen.pop(0)
    table = call("ground-truth").stdout
    assert "AUROC" in table
    assert "saturated, eap: " in table


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("dis", {"discover"}),
        ("discover --metho", {"--method"}),
        ("discover --method ", {"eap", "eap-ig", "relp", "atp-star"}),
        ("discover --method ea", {"eap", "eap-ig"}),
        ("discover --model smol", {"smollm2-135m-instruct"}),
        ("inspect gem", {"gemma-3-270m"}),
        ("get ", {"smollm2-135m-instruct", "gemma-3-270m"}),
    ],
)
def test_a_shell_completes_commands_options_choices_and_models(line, wanted, monkeypatch):
    words = f"persona-circuits {line}"
    monkeypatch.setenv("_PERSONA_CIRCUITS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
    said = CliRunner().invoke(app, [], prog_name="persona-circuits")
    assert said.exit_code == 0
    found = set(said.stdout.split())
    assert wanted <= found
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


def test_a_shell_completes_folders_of_models(tmp_path):
    for name in ("model-a", "model-b"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model.txt").touch()
    assert complete_model(f"{tmp_path}/mod") == [
        f"{tmp_path}/model-a/",
        f"{tmp_path}/model-b/",
        f"{tmp_path}/model.gguf",
    ]
    assert complete_model(f"{tmp_path}/absent/x") == []


def test_the_completion_of_a_shell_is_shown_and_installed_on_request(monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    assert "--install-completion" in call("--help").stdout
    said = CliRunner().invoke(app, ["--show-completion"], prog_name="persona-circuits")
    assert said.exit_code == 0
    assert "_PERSONA_CIRCUITS_COMPLETE=complete_bash" in said.stdout


def test_the_version_is_printed():
    assert call("--version").stdout.strip() == f"persona-circuits {persona_circuits.__version__}"
    assert "discover" in call("--help").stdout


def test_the_script_and_the_console_command_are_one(monkeypatch):
    import tomllib
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options.entry_points"]["console_scripts"].strip() == "persona-circuits = persona_circuits.cli:main"
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())) == {"build-system", "tool"}


def test_pairs_are_built_and_can_be_searched(tmp_path):
    out = tmp_path / "new" / "pairs.jsonl"
    sources = ["--personas", "datasets/personas.jsonl", "--questions", "datasets/questions.jsonl"]
    done = call("pairs", *sources, "--template", "datasets/templates.json", "--out", out, "--max-pairs", 10)
    assert done.exit_code == 0, done.output
    assert "kept        10 pairs (train 8, test 2)" in done.stdout
    assert "no declared preference" in done.stdout
    again = call("pairs", *sources, "--template", "datasets/templates.json", "--out", out, "--max-pairs", 10, "--json")
    report = json.loads((tmp_path / "new" / "pairs.report.json").read_text())
    assert json.loads(again.stdout)["dropped"] == report["dropped"]
    assert len(out.read_text().splitlines()) == report["kept"] == 10


def test_pairs_say_what_is_wrong(tmp_path):
    out = tmp_path / "pairs.jsonl"
    asked = ["--questions", "datasets/questions.jsonl", "--out", out]
    (tmp_path / "one.csv").write_text("name,wording\nmonk,You are a monk.\n")
    (tmp_path / "two.csv").write_text("name,wording\nmonk,You are a monk.\nking,You are a king.\n")
    fails("needs two personas", "pairs", "--personas", tmp_path / "one.csv", *asked)
    fails("no chat template", "pairs", "--personas", tmp_path / "two.csv", *asked, "--template", "chat")
    fails("72 × no declared preference", "pairs", "--personas", tmp_path / "two.csv", *asked)
    assert not out.exists()


def test_collapse_of_the_shipped_model_with_no_arguments(tmp_path):
    done = call("collapse", "--out", tmp_path / "c", "--n-resamples", "50")
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert any(name.endswith(".csv") for name in names)
    assert any(name.endswith(".html") for name in names)
    table = done.stdout
    assert "sigma_0" in table
    assert "persona collapse of models/persona-world" in table
    fails("no pair of split", "collapse", "--out", tmp_path / "d", "--split", "nope")
    assert not (tmp_path / "d").exists()
