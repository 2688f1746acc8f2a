"""Loading by hub name, with the hub's refusals simulated: each becomes one sentence with the next step."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from conftest import DATA, ROOT
from huggingface_hub import constants, errors
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import load_task

NAME = "somebody/some-model"


def refusal(kind, status):
    response = httpx.Response(status, request=httpx.Request("GET", f"https://huggingface.co/{NAME}"))
    return kind(f"{status} from the hub", response=response)


def refuse_with(monkeypatch, error):
    """The tokenizer is asked for first; transformers wraps the hub's error in an OSError of its own."""

    def refuses(*_args, **_kwargs):
        raise OSError("some words of the host library") from error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuses)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda *_, **__: None)


def test_gated_without_a_token(monkeypatch):
    refuse_with(monkeypatch, refusal(errors.GatedRepoError, 401))
    with pytest.raises(ModelError, match=rf"{NAME} is gated; accept its terms at .*{NAME}, .* set HF_TOKEN"):
        load_model(NAME)


def test_gated_with_a_token_that_has_no_access(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    refuse_with(monkeypatch, refusal(errors.GatedRepoError, 403))
    with pytest.raises(ModelError, match="is gated; the token in use has no access: ask for it at") as caught:
        load_model(NAME)
    assert "hf_of_somebody" not in str(caught.value)


def test_no_such_repository(monkeypatch):
    refuse_with(monkeypatch, refusal(errors.RepositoryNotFoundError, 404))
    with pytest.raises(ModelError, match=f"no model {NAME} on the hub, or it is private: then set HF_TOKEN"):
        load_model(NAME)


def test_no_such_revision(monkeypatch):
    refuse_with(monkeypatch, refusal(errors.RevisionNotFoundError, 404))
    with pytest.raises(ModelError, match="no revision 'v9' on the hub; give a branch"):
        load_model(NAME, revision="v9")


def test_offline_and_not_in_the_cache(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse_with(monkeypatch, errors.LocalEntryNotFoundError("not there"))
    with pytest.raises(ModelError, match=f"HF_HUB_OFFLINE forbids fetching it; run 'hf download {NAME}'"):
        load_model(NAME)


def test_no_network(monkeypatch):
    refuse_with(monkeypatch, errors.LocalEntryNotFoundError("not there"))
    with pytest.raises(ModelError, match=r"the hub cannot be reached .*HTTPS_PROXY"):
        load_model(NAME)


def test_the_hub_is_overloaded(monkeypatch):
    refuse_with(monkeypatch, refusal(errors.HfHubHTTPError, 503))
    with pytest.raises(ModelError, match=r"did not give model .*503.* try again"):
        load_model(NAME)


def test_the_revision_reaches_the_hub_and_the_commit_is_kept(monkeypatch, tiny):
    asked = []
    network = AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2")
    network.config._commit_hash = "0123abcd"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: asked.append(k) or tiny.tokenizer)
    info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: asked.append(k) or (network, info))
    model = load_model(NAME, revision="main")
    assert [options["revision"] for options in asked] == ["main", "main"], "and nothing else is asked for"
    assert not any(options["local_files_only"] or options["trust_remote_code"] for options in asked)
    assert model.revision == "0123abcd"


def test_an_adapter_on_the_hub_is_refused(monkeypatch):
    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda *_, **__: "adapter_config.json")
    with pytest.raises(ModelError, match=f"{NAME} holds a LoRA adapter, which is not applied; merge it"):
        load_model(NAME)


def test_pickled_weights_on_the_hub_are_not_read(monkeypatch, tiny):
    def refuses(*_args, **how):
        assert how["use_safetensors"]
        raise OSError(f"{NAME} does not appear to have a file named model.safetensors or model.safetensors.index.json")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: tiny.tokenizer)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuses)
    with pytest.raises(ModelError, match=f"{NAME} has no model.safetensors on the hub; pickled weights are not read"):
        load_model(NAME)


def test_what_was_found_in_a_commit_is_measured_in_it(monkeypatch, tmp_path):
    """Commands that read a circuit load the commit that its file names, unless told otherwise."""
    from persona_circuits.cli import app
    from persona_circuits.commands.terminal import revision_of

    record = {"model": {"name": NAME, "revision": "0123abcd"}}
    assert revision_of(record, None) == "0123abcd"
    assert revision_of(record, "another/model") is None
    assert revision_of(None, None) is None
    from persona_circuits.circuit.discovery import Options, discover
    from persona_circuits.circuit.io import write_circuit

    model = load_model(DATA / "tiny-gpt2")
    model.revision, model.name = "0123abcd", NAME
    found = discover(model, load_task(DATA / "tiny_pairs.json"), Options(method="eap", threshold=0.1, n_random=0))
    write_circuit(found.record, tmp_path / "circuit.json")
    asked = []
    monkeypatch.setattr(
        "persona_circuits.circuit.model.load_model", lambda *args, **how: asked.append(how["revision"]) or model
    )
    from persona_circuits.persona.data import load_tokenizer

    read = []
    monkeypatch.setattr(
        "persona_circuits.persona.data.load_tokenizer",
        lambda name, revision=None: read.append(revision) or load_tokenizer(str(DATA / "tiny-gpt2")),
    )
    common = ["evaluate", str(tmp_path / "circuit.json"), "--only-faithfulness", "--no-save", "--n-random", "0"]
    common += ["--pairs", str(DATA / "tiny_pairs.json")]
    for more in ([], ["--revision", "v2"]):
        assert CliRunner().invoke(app, [*common, *more]).exit_code == 0
    assert asked == read == ["0123abcd", "v2"]


class _Hub(BaseHTTPRequestHandler):
    """Refuses every model as a gated one, and remembers what it was asked with."""

    def do_HEAD(self):
        self.server.seen.append(self.headers.get("Authorization"))
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_refuses_sees_the_token_of_the_environment_and_is_left_alone_offline(hub, offline, tmp_path):
    """The whole command in a process of its own, against a hub on this machine."""
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_secret"}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "cli", "inspect", NAME]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    says = "HF_HUB_OFFLINE forbids fetching it" if offline else "is gated; the token in use has no access"
    assert says in done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    assert set(hub.seen) == (set() if offline else {"Bearer hf_secret"})
