"""Every option of every command: it always has an effect, or is refused where it has none."""

import pytest
import typer
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import write_eap_ig
from persona_circuits.circuit.subgraph import Circuit

TINY, PAIRS = str(DATA / "tiny-gpt2"), str(DATA / "tiny_pairs.json")
RUN = ["--model", TINY, "--pairs", PAIRS]
TEXTS = ["--personas", "p.jsonl", "--questions", "q.jsonl", "--out", "o.jsonl"]
EAP_IG = "EAP-IG's JSON"
ASKING = {
    "--base-url": "http://localhost:1",
    "--api-key": "k",
    "--concurrency": "2",
    "--max-retries": "1",
    "--timeout": "1",
    "--deadline": "9",
    "--max-bytes": "9",
    "--limit-field": "max_completion_tokens",
}
RUNNING = {"--device": "cpu", "--dtype": "float64", "--revision": "main", "--batch-size": "2"}
SAID = {
    "--personas": "p.jsonl",
    "--questions": "q.jsonl",
    "--wordings": "2",
    "--question-wordings": "2",
    "--samples": "2",
    "--max-questions": "2",
    "--max-new-tokens": "2",
    "--temperature": "1",
    "--top-p": "0.5",
    "--stop": ".",
}

IDLE = [
    (
        "discover",
        [*RUN, "--prune", "acdc"],
        {
            "--method": "exact",
            "--weigh": "couples",
            "--of": "eap,gim",
            "--normalise": "rank",
            "--steps": "5",
            "--ig-rule": "midpoint",
            "--scores": "new",
        },
    ),
    ("discover", [*RUN, "--method", "eap"], {"--steps": "5", "--ig-rule": "authors", "--candidates": "2"}),
    ("discover", [*RUN, "--method", "exact", "--prune", "eap-acdc"], {"--steps": "2"}),
    ("discover", [*RUN, "--prune", "top-n", "--top-n", "9"], {"--threshold-on": "score", "--candidates": "1"}),
    ("discover", [*RUN, "--target-faithfulness", "0.9"], {"--threshold-on": "share"}),
    ("discover", [*RUN, "--prune", "top-n", "--top-n", "9", "--method", "gim"], {"--train-steps": "9", "--steps": "2"}),
    ("discover", [*RUN, "--prune", "top-n", "--top-n", "9"], {"--nodes-first": None}),
    ("discover", RUN, {"--revision": "main", "--threshold-on": "share", "--neuron-share": "0.9"}),
    ("discover", [*RUN, "--resolution", "span"], {"--by-span": None}),
    (
        "report",
        ["x"],
        {"--model": TINY, "--pairs": PAIRS, "--device": "cpu", "--dtype": "float64", "--max-memory": "8GiB"}
        | {"--fitting": None},
    ),
    ("get", ["--list"], {"--accept-licence": None}),
    (
        "evaluate",
        ["x", "--only-faithfulness"],
        {"--by": "domain", "--orders": "3", "--quick": None, "--budget": "1m", "--certify": "1"},
    ),
    ("evaluate", ["x", "--no-save"], {"--strongest": "9"}),
    ("evaluate", [EAP_IG, *RUN], {"--save": None, "--no-save": None, "--orders": "2"}),
    ("curves", [*RUN, "--scorers", "eap"], {"--steps": "5", "--n-random": "10"}),
    ("curves", [*RUN, "--scorers", "random"], {"--train-split": "train", "--steps": "2"}),
    (
        "compare",
        ["a", "b", "--no-model"],
        {"--pairs-a": "p", "--pairs-b": "p", "--model": "m", "--n-random": "3", "--max-memory": "1GiB"}
        | {name: RUNNING[name] for name in ("--device", "--dtype", "--batch-size")},
    ),
    ("compare", ["a", "b"], {"--strongest": "9"}),
    (
        "crosscheck",
        ["x", "--scores", "y.safetensors"],
        {
            "--pairs": "p",
            "--model": "m",
            "--split": "all",
            "--n-pairs": "3",
            "--steps": "3",
            "--mask-ig": None,
            "--fitting": None,
        }
        | {"--peers": "e", "--out": "o", "--batch-size": "2"},
    ),
    ("bench", [*RUN, "--acdc-edges", "0"], {"--candidates": "2", "--share": "0.1"}),
    ("inspect", [TINY], {"--align": "right", "--revision": "main"}),
    ("inspect", [TINY, "--pairs", PAIRS], {"--tokens": "9", "--prompts": "9"}),
    ("inspect", [TINY, "--json"], {"--price": "2"}),
    ("pairs", [*TEXTS, "--format", "cue"], {"--template": "raw"}),
    ("pairs", [*TEXTS, "--mine-candidates"], {"--ask-model": None}),
    ("collapse", RUN, {"--bias-cut": "1.5"}),
    ("neurons", [*RUN, "--no-answers"], {"--ablate-at": "all", "--n-random": "9", "--max-pairs": "3"}),
    ("neurons", [*RUN, "--no-answers"], {"--ablation": "zero"}),
    ("patch", RUN, {"--ablation": "corrupt", "--n-random": "9", "--eval-split": "all"}),
    ("patch", [*RUN, "--at", "stream"], {"--negligible": "0.02"}),
    (
        "steer",
        [*RUN, "--generate", "0"],
        {name: SAID[name] for name in ("--max-new-tokens", "--temperature", "--stop")},
    ),
    ("steer", RUN, {"--top-p": "0.5"}),
    ("steer", [*RUN, "--layer", "1"], {"--together": None}),
    ("respond", [], {**ASKING, "--system-turn": None}),
    ("respond", ["--endpoint-model", "m"], {**RUNNING, "--cue": "A:"}),
    ("respond", ["--temperature", "0"], {"--top-p": "0.5"}),
    ("vectors", ["--responses", "r.jsonl"], SAID),
    ("vectors", [], {"--n-permutations": "9", "--min-cosine": "0.99"}),
    ("vectors", ["--temperature", "0"], {"--top-p": "0.5"}),
    ("bridge", ["x", "--movers", "m.json"], {"--top-k": "3"}),
    ("rate", [], {**ASKING, "--rater-prompt": "p", "--no-control": None, "--max-answer-tokens": "3"}),
    ("rate", ["--endpoint-model", "m"], {**RUNNING, "--cue": "A:", "--neutral-text": "one"}),
    *((command, RUN, {"--revision": "main"}) for command in ("patch", "lens", "probe", "neurons", "explain", "steer")),
]
"""A command, what makes some of its options idle, and these options with a value, which may be their default."""


def flags_of(command):
    """Every option's first name, and its negation's where it has one."""
    params = typer.main.get_command(cli.app).commands[command].params
    return {one.opts[0]: one for one in params if one.param_type_name == "option" and one.name != "help"}


CASES = [(command, given, flag, value) for command, given, flags in IDLE for flag, value in flags.items()]


@pytest.fixture(scope="module")
def eap_ig(tmp_path_factory):
    """A circuit that does not say how it was found."""
    path = tmp_path_factory.mktemp("circuit") / "circuit.json"
    write_eap_ig(Circuit.full(Graph(3, 4)), None, path)
    return str(path)


@pytest.mark.parametrize(("command", "given", "flag", "value"), CASES, ids=lambda one: str(one)[-24:])
def test_an_option_without_effect_is_refused(command, given, flag, value, eap_ig, tmp_path, monkeypatch):
    """By name and before anything is read or written, its default value too."""
    monkeypatch.chdir(tmp_path)
    given = [eap_ig if one == EAP_IG else one for one in given]
    done = CliRunner().invoke(cli.app, [command, *given, flag, *([] if value is None else [value])])
    assert done.exit_code == 2, done.output
    assert f"{flag.replace('--no-', '--')} has no effect here: it is for" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_it_the_same_command_is_not_refused(tmp_path):
    """The refusal is of the option: what makes it idle is fine by itself, and so is the option elsewhere."""
    how = [*RUN, "--n-random", "0", "--out", str(tmp_path / "x"), "--batch-size", "8"]
    for more in (["--method", "eap"], ["--steps", "1", "--ig-rule", "authors"]):
        done = CliRunner().invoke(cli.app, ["discover", *how, *more])
        assert done.exit_code == 0, done.output


ELSEWHERE = {
    "discover": {"--threshold", "--top-n", "--activations"},
    "evaluate": {"--null", "--tables"},
    "patch": {"--from", "--ablate-top"},
    "steer": {"--toward", "--away"},
    "bridge": {"--toward", "--away"},
    "inspect": {"--write-fitting"},
}
"""Refused in other words, by the options' own checks; tested with those commands."""
ALWAYS = {
    "get": "--list --folder",
    "discover": "--groups --model --pairs --out "
    "--prune --neurons --open-heads --finish --checks --certify --target-faithfulness --sweep --metric "
    "--ablation --align --null --resolution --train-split --eval-split --where --n-random --min-faithfulness "
    "--strongest --seed --device --dtype --max-memory --batch-size --fitting --force --report "
    "--json",
    "report": "--file --with --groups --verdicts --inside",
    "evaluate": "--pairs --model --metric --ablation --split --where --only-faithfulness --n-random "
    "--min-faithfulness --report --seed --device --dtype --max-memory --revision --batch-size --fitting --json",
    "specificity": "--names --model --split --out --seed --device --dtype --max-memory --batch-size --fitting --json",
    "curves": "--scorers --level --order --model --pairs --metric --ablation --align --split --where --out "
    "--seed --device --dtype --max-memory --revision --batch-size --fitting --json",
    "compare": "--report --picture --no-model --n-draws --budget --seed --json",
    "draw": "--file --strongest --title --groups --width",
    "validate": "--against",
    "view": "--port",
    "figures": "--out --formats --width",
    "export": "--to --file --out",
    "crosscheck": "--scores --tolerance --json",
    "bench": "--model --pairs --n-pairs --rounds --steps --edges --acdc-edges --report --seed --device --dtype "
    "--revision --json",
    "models": "--json",
    "inspect": "--pairs --config-only --on --max-memory --json",
    "ground-truth": "--steps --seed --json",
    "pairs": "--personas --questions --file --model --format --cue --contrast --answers --report --max-pairs "
    "--mine-candidates "
    "--per-question --variants --test-share --leaks --filler --align --forms --null --add-neutral --neutral-wordings "
    "--seed "
    "--json",
    "vary": "--pairs --rules --frame --personas --file --model --split --json",
    "formats": "--model --personas --questions --contrast --format --max-pairs --min-mass --n-answers --test-share "
    "--n-resamples --out --seed --device --dtype --revision --batch-size --json",
    "prior-pairs": "--pairs --neutral --file --model --report --min-lead --max-pairs --seed --device --dtype "
    "--revision --batch-size --json",
    "collapse": "--align --average --predict --model --pairs --null --neutral --out --split --n-resamples --seed "
    "--device --dtype --revision --batch-size --fitting --json",
    "explain": "--average --calibration --model --pairs --null --by --thresholds --causal --out --split --n-resamples "
    "--seed --device --dtype --batch-size --fitting --json",
    "probe": "--model --pairs --test-pairs --personas --targets --hold-out --positions --out --split --every "
    "--folds --penalty --repeats --n-resamples --seed --device --dtype --batch-size --fitting --json",
    "lens": "--model --pairs --tokens --positions --out --split --n-resamples --seed --device --dtype "
    "--batch-size --fitting --json",
    "patch": "--model --pairs --tokens --at --parts --to --ablate --null --align --train-split --out --seed --device "
    "--dtype --batch-size --fitting --json",
    "study": "--model --pairs --null --variants --prior-pairs --frames --frame-edges --wordings --gate-edges "
    "--gate-steps --least-mass --personas --plan --only "
    "--threshold --target-faithfulness --max-pairs --n-random --probe-every --n-resamples --quick --thorough "
    "--compact --out --seed --device --dtype --revision --batch-size --json",
    "respond": "--model --personas --questions --template --out --wordings --question-wordings --samples "
    "--max-questions --baseline --max-new-tokens --temperature --stop --endpoint-model --seed --json",
    "vectors": "--model --responses --template --cue --layer --layer-fraction --compare --reference --out --baseline "
    "--seed --device --dtype --revision --batch-size --json",
    "steer": "--groups --model --pairs --fit --direction --layer --positions --strengths --ablate --n-controls "
    "--kl-bound --neutral --split --max-pairs --generate --out --n-resamples --seed --device --dtype "
    "--batch-size --fitting --json",
    "neurons": "--answers --model --pairs --test-pairs --null --layer --hook --position --pool --rank-by --top-k "
    "--level --ablation --ablate-at --n-random --max-pairs --min-group --n-draws --out --seed --device --dtype "
    "--batch-size --fitting --json",
    "bridge": "--model --pairs --test-pairs --movers --neurons --position --layer --direction --n-random --out "
    "--seed --device --dtype --revision --batch-size --fitting --json",
    "rate": "--responses --model --template --endpoint-model --out --n-resamples --seed --json",
}
"""Always with an effect."""


def test_every_option_has_been_thought_of():
    """A new option enters IDLE with what makes it idle, or ALWAYS."""
    always = {command: set(flags.split()) for command, flags in ALWAYS.items()}
    for command in typer.main.get_command(cli.app).commands:
        known = {flag.replace("--no-", "--") for name, _, flags in IDLE for flag in flags if name == command}
        known |= ELSEWHERE.get(command, set()) | always.get(command, set())
        assert set(flags_of(command)) - known == set(), command
        assert always.get(command, set()) <= set(flags_of(command)), command
