"""Folders and names that are not what they seem: each is refused in one sentence, nothing is run or guessed."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import DATA, ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.catalogue import FOLDER_VARIABLE
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.model import load_model, load_skeleton
from persona_circuits.commands import terminal
from persona_circuits.commands.options import Loading
from persona_circuits.persona.data import load_tokenizer
from tests.families import FAMILIES, network_of, save

KINDS = ("llama2", "gpt2", "gemma3")
LAST = {"llama2": "model.layers.1.", "gpt2": "transformer.h.1.", "gemma3": "model.layers.1."}
LAYERS = {"llama2": "num_hidden_layers", "gpt2": "n_layer", "gemma3": "num_hidden_layers"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 98765\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One folder of each kind; tests take copies."""
    return {kind: save(kind, tmp_path_factory.mktemp(kind) / "model") for kind in (*KINDS, "gemma3, multimodal")}


@pytest.fixture
def folder(made, tmp_path):
    return lambda kind="llama2": shutil.copytree(made[kind], tmp_path / "model")


def rewrite(folder, change):
    """Give the stored weights to a function and write what it returns in their place."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def configure(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **{k: v(config) if callable(v) else v for k, v in changes.items()}}))
    return folder


def both_refuse(folder, match):
    """Loading refuses, and so does what reads the heads of the files alone, in the same words."""
    said = []
    for read in (load_model, load_skeleton):
        with pytest.raises(ModelError, match=match) as caught:
            read(str(folder))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_a_wrappers_prefix_is_named(folder, kind, prefix):
    place = rewrite(folder(kind), lambda weights: {prefix + key: value for key, value in weights.items()})
    both_refuse(place, rf"not in the checkpoint.*not in the model.*every key has the prefix '{prefix}'")


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_too_few_or_too_many(folder, kind):
    place = folder(kind)
    weights = load_file(place / "model.safetensors")
    key = next(key for key in weights if "mlp" in key)
    rewrite(place, lambda _: {one: value for one, value in weights.items() if one != key})
    both_refuse(place, rf"{key} of the model not in the checkpoint")
    rewrite(place, lambda _: {**weights, "model.extra.weight": torch.zeros(2)})
    both_refuse(place, "model.extra.weight of the checkpoint not in the model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_too_few_or_too_many(folder, kind):
    place = folder(kind)
    longer = {"layer_types": ["full_attention"] * 3} if kind == "gemma3" else {}
    configure(place, **{LAYERS[kind]: 3}, **longer)
    both_refuse(place, rf"{LAST[kind].replace('1', '2')}.* and \d+ more of the model not in the checkpoint")
    shorter = {"layer_types": ["full_attention"]} if kind == "gemma3" else {}
    configure(place, **{LAYERS[kind]: 1}, **shorter)
    both_refuse(place, rf"{LAST[kind]}.* and \d+ more of the checkpoint not in the model")


@pytest.mark.parametrize("kind", KINDS)
def test_another_shape(folder, kind):
    both_refuse(configure(folder(kind), vocab_size=65), r"\(64x24 for 65x24\).* of another shape")


def test_constants_of_older_checkpoints_do_no_harm(folder):
    """GPT-2's causal masks, as the files on the hub hold them; the model is the same as without."""
    place = folder("gpt2")
    before = load_model(place).fingerprint
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32), "transformer.h.0.attn.masked_bias": torch.zeros(1)}
    rewrite(place, lambda weights: {**weights, **masks})
    assert load_model(place).fingerprint == before
    assert load_skeleton(place)[0].config.n_layer == 2


def test_an_untied_head_that_is_not_there_is_missing(folder):
    place = rewrite(folder(), lambda weights: {k: v for k, v in weights.items() if k != "lm_head.weight"})
    both_refuse(place, "lm_head.weight of the model not in the checkpoint")


def test_parts_of_other_modalities_may_be_missing_or_new(folder):
    place = folder("gemma3, multimodal")
    before = load_model(place).fingerprint
    eyes = [key for key in load_file(place / "model.safetensors") if "vision" in key]
    assert eyes
    rewrite(place, lambda weights: {("x" + k if k == eyes[0] else k): v for k, v in weights.items()})
    with pytest.raises(ModelError, match=f"x{eyes[0]} of the checkpoint not in the model"):
        load_model(place)
    rewrite(place, lambda weights: {k.removeprefix("x") + "_old" * k.startswith("x"): v for k, v in weights.items()})
    assert load_model(place).fingerprint == before
    rewrite(place, lambda weights: {k: v for k, v in weights.items() if not k.endswith("model.norm.weight")})
    both_refuse(place, r"norm\.weight of the model not in the checkpoint")


def test_shards(folder, tmp_path):
    """Weights in several files load as in one; a file that is not there, or an index that is none, is named."""
    place = folder()
    before = load_model(place).fingerprint
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(network_of(FAMILIES["llama2"]).config).save_pretrained(
        place, state_dict=weights, max_shard_size="10KB"
    )
    shards = sorted(place.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert load_model(place).fingerprint == before
    shards[1].unlink()
    both_refuse(place, rf"lacks {shards[1].name}, named in model\.safetensors\.index\.json")
    (place / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    both_refuse(place, "is no index of weights")


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_refused_whether_or_not_its_library_is_there(folder, monkeypatch, installed, whole):
    place = folder()
    (place / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "base_model_name_or_path": "none/such"}')
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(4, 24)}, place / "adapter_model.safetensors")
    if not whole:
        for file in ("config.json", "model.safetensors"):
            (place / file).unlink()
    for module in ("models.auto.auto_factory", "integrations.peft"):
        monkeypatch.setattr(f"transformers.{module}.is_peft_available", lambda: installed)
    match = r"holds a LoRA adapter \(adapter_config\.json\), which is not applied; merge it .*merge_and_unload"
    both_refuse(place, match + (".*take the adapter's files away" if whole else ""))
    with pytest.raises(ModelError, match=match):
        load_tokenizer(str(place))


def custom(folder, marker, tokenizer=False):
    """A folder with code of its own, which writes a file when it is imported."""
    (folder / "configuration_my.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, PreTrainedTokenizerFast\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'my'\n"
        "class MyTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    if tokenizer:
        mapping = {"AutoTokenizer": [None, "configuration_my.MyTokenizer"]}
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {"tokenizer_class": "MyTokenizer", "auto_map": mapping}
        path.write_text(json.dumps(settings))
    else:
        configure(folder, model_type="my", auto_map={"AutoConfig": "configuration_my.MyConfig"})
    return folder


@pytest.mark.parametrize("tokenizer", [False, True])
def test_code_of_the_model_is_not_run_and_nobody_is_asked(folder, tmp_path, monkeypatch, tokenizer):
    marker = tmp_path / "ran"
    place = custom(folder(), marker, tokenizer)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for read in (load_model, load_tokenizer, *(() if tokenizer else (load_skeleton,))):
        with pytest.raises(ModelError, match="needs code of its own, which is not run"):
            read(str(place))
    assert not marker.exists()


def test_yes_on_standard_input_is_not_read(folder, tmp_path):
    """The whole command in a process of its own: the next program on the same input still gets the line."""
    place = custom(folder(), tmp_path / "ran")
    command = f"{sys.executable} -m persona_circuits.cli inspect {place}; read answer; echo got $answer"
    done = subprocess.run(["sh", "-c", command], input="y\n", cwd=ROOT, capture_output=True, text=True)
    assert "needs code of its own, which is not run" in done.stderr
    assert done.stdout.strip() == "got y"
    assert not (tmp_path / "ran").exists()


def test_a_generation_of_its_own_is_not_run(folder, tmp_path):
    place = folder()
    (place / "custom_generate").mkdir()
    (place / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (place / "modeling_llama.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    load_model(place)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "says"), [(POINTER, "is a git-lfs pointer .* git lfs pull"), (b"", "is empty; fetch")]
)
def test_pointers_and_empty_files(folder, file, content, says):
    place = folder()
    (place / file).write_bytes(content)
    both_refuse(place, f"{file} {says}")


@pytest.mark.parametrize("content", [b"garbage" * 20, b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}", None])
def test_damaged_weights(folder, content):
    place = folder()
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[:-100] if content is None else content)
    says = "of the model not in the checkpoint" if content and content.endswith(b"{}") and content[0] == 2 else None
    both_refuse(place, says or r"model\.safetensors is damaged or no safetensors file \(.*\); fetch or save it again")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", '"text"', "{}", '{"model": 3, "vocab_size": "many"}', "[" * 5000])
def test_damaged_configurations_are_sentences(folder, file, content):
    place = folder()
    (place / file).write_text(content)
    said = [fault(read, place) for read in (load_model, load_skeleton, load_tokenizer)]
    assert "\n" not in "".join(said)
    if content in ("{", "[" * 5000):
        assert said[0]


def fault(read, place):
    """What is said of a folder that cannot be read; nothing but a sentence may come of it."""
    try:
        read(str(place))
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_not_read(folder, tmp_path, file):
    place = folder()
    (place / "model.safetensors").unlink()
    (place / file).write_bytes(f"cbuiltins\nopen\n(V{tmp_path / 'ran'}\nVw\ntR.".encode())
    with pytest.raises(ModelError, match=rf"pickled weights \({file}\), which may run code .*convert them once"):
        load_model(place)
    assert not (tmp_path / "ran").exists()


def test_other_weights_than_those_that_are_read(folder):
    place = folder()
    (place / "model.safetensors").rename(place / "consolidated.safetensors")
    both_refuse(place, r"no weights; expected model\.safetensors .*, found consolidated\.safetensors")


def test_no_tokenizer(folder):
    place = folder()
    for file in place.glob("tokenizer*"):
        file.unlink()
    for read in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"has no tokenizer files; expected tokenizer\.json"):
            read(str(place))
    assert load_skeleton(place)[1] is None


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_that_are_no_numbers(folder, value, says):
    def spoil(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        return weights

    with pytest.raises(ModelError, match=rf"weight model\.layers\.1\.mlp\.up_proj\.weight holds {says}"):
        load_model(rewrite(folder(), spoil))


def test_weights_too_large_for_the_format(folder):
    place = rewrite(folder(), lambda weights: {k: v + 1e5 * k.endswith("up_proj.weight") for k, v in weights.items()})
    with pytest.raises(ModelError, match=r"up_proj\.weight holds infinity in float16; load it in float32"):
        load_model(place, dtype="float16")


NAMES = {
    "https://huggingface.co/owner/name": "give the model's name, owner/name$",
    "huggingface.co/owner/name/tree/v2": "give the model's name, owner/name and --revision v2",
    "https://huggingface.co/datasets/owner/name": "the address of a page; give a Hugging Face folder",
    "https://example.org/owner/name": "models are not read from addresses",
    "nowhere.gguf": "there is no file nowhere.gguf; give a GGUF file",
    "smollm2-135m-instruct": "is not fetched; get it with: persona-circuits get smollm2-135m-instruct",
    "FOLDER/config.json": "is a file; give the folder that it lies in, FOLDER, or",
    "FOLDER/model.safetensors": "is a file; give the folder that it lies in, FOLDER, or",
    "FOLDER/none": "does not exist",
    "": "the model's name is empty",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_things_than_models(folder, name, monkeypatch, tmp_path):
    place = folder()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nothing"))
    said = []
    for read in (load_model, load_skeleton, load_tokenizer):
        with pytest.raises(ModelError, match=NAMES[name].replace("FOLDER", str(place))) as caught:
            read(name.replace("FOLDER", str(place)))
        said.append(str(caught.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize("config_only", [False, True])
def test_inspect_refuses_before_it_prints(folder, config_only):
    place = rewrite(folder(), lambda weights: {f"module.{key}": value for key, value in weights.items()})
    done = CliRunner().invoke(cli.app, ["inspect", str(place), *["--config-only"] * config_only])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "every key has the prefix 'module.'" in done.stderr


def test_a_configuration_without_weights_can_be_inspected(folder):
    place = folder()
    (place / "model.safetensors").unlink()
    assert CliRunner().invoke(cli.app, ["inspect", str(place), "--config-only"]).exit_code == 0


def test_the_small_model_of_the_tests_is_read(tiny):
    assert load_skeleton(DATA / "tiny-gpt2")[0].config.n_layer == tiny.graph.n_layers


def test_what_the_host_library_says_is_kept_and_shown(folder, monkeypatch, capsys):
    """Not a warning of it is swallowed; nothing is printed by the library itself."""
    import logging
    import warnings

    from transformers import AutoTokenizer

    place, read = folder(), AutoTokenizer.from_pretrained

    def speaks(*args, **how):
        logging.getLogger("transformers.somewhere").warning("a tokenizer\n of another kind")
        warnings.warn("rope parameters are odd", UserWarning, stacklevel=1)
        warnings.warn("will go", FutureWarning, stacklevel=1)
        return read(*args, **how)

    assert load_model(place).notes == ()
    assert load_model(place, label="gpt2-small").notes == ()  # to the host library that is an old name
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", speaks)
    handlers = logging.getLogger("transformers").handlers
    assert load_model(place).notes == ("a tokenizer of another kind", "rope parameters are odd")
    assert logging.getLogger("transformers").handlers is handlers
    terminal.load(lambda _: None, str(place), Loading(device="cpu"))
    assert "note: a tokenizer of another kind" in capsys.readouterr().err
