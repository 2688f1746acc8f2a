"""Loading by hub name, with the hub's refusals simulated: each becomes one sentence with the next step."""

import httpx
import pytest
from conftest import DATA
from huggingface_hub import constants, errors
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuit.errors import ModelError
from circuit.model import load_model

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
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: asked.append(k) or network)
    model = load_model(NAME, revision="main")
    # The host library asks for a tokenizer of its own after these two.
    assert [options["revision"] for options in asked[:2]] == ["main", "main"]
    assert not any(options["local_files_only"] for options in asked[:2])
    assert model.revision == "0123abcd"
