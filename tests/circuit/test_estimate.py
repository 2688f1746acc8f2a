"""Sizes read off networks, and the two commands that print them; formulas and memory are in test_bench."""

import json

import pytest
import torch
from conftest import DATA, ROOT
from families import FAMILIES, REFUSED, network_of, save, short_table, table
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from persona_circuits.circuit.cost import architecture_of, state_bytes, weight_bytes
from persona_circuits.circuit.errors import ModelError, OptionError
from persona_circuits.circuit.profiling import InspectOptions, inspect_model, supported_families


@pytest.mark.parametrize(
    "name", ["gpt2", "llama2", "llama3.2", "qwen2.5", "gemma2", "neox, parallel", "phi3", "mixtral"]
)
def test_sizes_are_the_networks(name):
    network = network_of(FAMILIES[name])
    arch = architecture_of(network, name)
    config = network.config
    assert (arch.layers, arch.heads, arch.d_model, arch.vocab) == (2, 4, 24, 64)
    assert arch.kv_heads == (getattr(config, "num_key_value_heads", None) or 4)
    experts = 4 if name == "mixtral" else 1
    assert arch.d_mlp == pytest.approx(40 * experts, abs=2)  # a router's few weights count as MLP
    matrices = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    positions = 32 * 24 if name == "gpt2" else 0
    assert arch.parameters == pytest.approx(matrices - positions, rel=0.01)


def three_b():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=128256,
                hidden_size=3072,
                intermediate_size=8192,
                num_hidden_layers=28,
                num_attention_heads=24,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )


def test_a_3b_shape_on_the_meta_device():
    arch = architecture_of(three_b(), "3B")
    assert arch.parameters == pytest.approx(3.21e9, rel=0.01)
    assert weight_bytes(arch, "float32") == pytest.approx(4 * (3.21e9 + 28 * 2 * 3072 * 128 * 16), rel=0.01)
    assert state_bytes(arch, 64, "float32") > arch.graph.n_src * 3072 * 64 * 4


def test_inspection_from_a_configuration_alone(tmp_path):
    three_b().config.save_pretrained(tmp_path)
    found = inspect_model(str(tmp_path), InspectOptions(config_only=True, device="A100 80GB"))
    assert found.comes_apart is None
    assert (found.graph.n_layers, found.graph.n_heads) == (28, 24)
    assert list(found.costs) == ["float32", "bfloat16-weights", "bfloat16"]
    long, held, short = (steps[0] for steps in found.costs.values())
    assert 0 < long.prompts_at_once < held.prompts_at_once < short.prompts_at_once
    assert long.bytes_per_prompt == held.bytes_per_prompt == 2 * short.bytes_per_prompt
    by_name = {step.step: step.seconds for step in found.costs["float32"]}
    assert by_name["EAP"] < by_name["EAP-IG, 5 points"] < by_name["ACDC on 16 prompts"] < by_name["exact patching"]
    less = inspect_model(str(tmp_path), InspectOptions(config_only=True, device="A100 80GB"), max_memory=24 << 30)
    assert 0 < less.costs["float32"][0].prompts_at_once < long.prompts_at_once
    tight = inspect_model(str(tmp_path), InspectOptions(config_only=True, device="A100 80GB"), max_memory=4 << 30)
    assert [step.prompts_at_once for step in tight.costs["float32"]] == [0] * 6
    with pytest.raises(OptionError, match="not one of RTX 4090"):
        inspect_model(str(tmp_path), InspectOptions(config_only=True, device="abacus"))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        inspect_model(str(tmp_path / ".."), InspectOptions(config_only=True))


def test_every_family_is_in_the_record_and_passed():
    """The record is made by ``python -m tests.families --table``; this fails where that was forgotten."""
    record = supported_families()
    assert [one["name"] for one in record["families"]] == list(FAMILIES)
    assert [one["name"] for one in record["refused"]] == list(REFUSED)
    for one in record["families"]:
        assert set(one["checks"].values()) <= ({"passed", "skipped"} if one["note"] else {"passed"}), one["name"]
    assert table(record) in (ROOT / "docs" / "models.md").read_text()
    assert short_table(record) in (ROOT / "README.md").read_text()


@pytest.fixture
def command():
    from persona_circuits import cli

    return lambda *args: CliRunner().invoke(cli.app, [str(arg) for arg in args])


def test_models_lists_them(command):
    done = command("models", "--json")
    assert done.exit_code == 0
    assert json.loads(done.output) == supported_families()
    assert "residual stream inside itself" in command("models").output.replace("\n", " ")


def test_inspect_says_whether_pairs_fit(command, tmp_path):
    given = ("inspect", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json", "--json")
    assert json.loads(command(*given).output)["comes_apart"] is None  # no weights are read
    fits = command(*given, "--no-config-only")
    assert fits.exit_code == 0, fits.output
    found = json.loads(fits.output)
    assert found["comes_apart"] is True
    assert found["pairs"]["n_pairs"] == 8
    assert found["assumed"]["tokens"] == found["pairs"]["longest"]
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"clean": "a b", "corrupt": "a b c", "answers": [" a"], "wrong_answers": [" b"]}) + "\n")
    assert command("inspect", DATA / "tiny-gpt2", "--pairs", bad).exit_code == 1


def test_prices_are_hours_times_the_price(command):
    plain = command("inspect", DATA / "tiny-gpt2", "--config-only")
    dear = command("inspect", DATA / "tiny-gpt2", "--config-only", "--price", "3600000", "--on", "A100 80GB")
    assert (plain.exit_code, dear.exit_code) == (0, 0)
    assert "cost" in dear.output
    assert "cost" not in plain.output
    found = json.loads(command("inspect", DATA / "tiny-gpt2", "--config-only", "--json", "--on", "A100 80GB").output)
    seconds = found["cost"][0]["steps"][3]["seconds"]
    assert f"{seconds * 1000:,.2f}" in dear.output


def test_inspect_of_what_is_refused_and_of_nothing(command, tmp_path):
    done = command("inspect", save("bloom", tmp_path / "bloom"))
    assert done.exit_code == 1
    assert "no MLP that is a function of the residual stream" in done.output
    assert command("inspect", tmp_path / "nothing").exit_code == 2
