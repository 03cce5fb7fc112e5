"""Writes the golden checkpoints: small random StarCoder2 models that differ in what an engine can get wrong.

python tools/goldens/checkpoints.py [tests/goldens]
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Starcoder2Config

STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Keys that published configs carry and that mean nothing to the model: they must change nothing.
STRAY_7B = {
    "activation_function": "gelu",
    "attention_softmax_in_fp32": True,
    "layer_norm_epsilon": 1e-05,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
}
STRAY_15B = {"_name_or_path": "/aot/checkpoints/15b/config.json", "rms_norm_eps": 1e-05}

# As the first revisions had it: an end-of-text id outside the vocabulary.
OLD_GENERATION = {
    "_from_model_config": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "transformers_version": "4.37.0.dev0",
}


@dataclass
class Checkpoint:
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    window: int | None
    stored: str
    theta: float
    layers: int = 2
    shards: int = 1
    # "absent": the key is absent, which means tied. "copy": tied, and the file repeats the embedding as lm_head.weight.
    # "conflict": as "copy", with other values; transformers 5 then uses them.
    head: str = "absent"
    bias: bool = True
    eps: float = 1e-05
    # Multiplies the embedding and everything added to the residual: with small activations eps matters.
    residual: float = 1.0
    # Most of GELU's inputs near −2.5, where its two forms differ by 2 % instead of by 0.02 %.
    gelu_tail: bool = False
    style: str = "published"
    extra: dict = field(default_factory=dict)
    generation_config: dict | None = None


# fmt: off
CHECKPOINTS = [
    Checkpoint("mha", 2, 2, 64, 128, 203, 517, 32, "float32", 10000.0, gelu_tail=True),
    Checkpoint("mha-d128", 2, 2, 128, 72, 203, 517, 16, "bfloat16", 1000000.0, layers=3, head="untied"),
    Checkpoint("gqa2", 4, 2, 64, 256, 131, 259, 48, "bfloat16", 100000.0, shards=3, generation_config=OLD_GENERATION),
    Checkpoint("gqa2-d128", 4, 2, 128, 100, 387, 517, None, "float16", 999999.4420358813, head="tied"),
    Checkpoint("gqa9", 18, 2, 64, 72, 203, 517, 24, "bfloat16", 1000000.0, head="copy", gelu_tail=True, extra=STRAY_7B),
    Checkpoint("gqa9-d128", 9, 1, 128, 72, 147, 517, 40, "float16", 100000.0, shards=2, head="untied", extra=STRAY_15B),
    Checkpoint("gqa12", 12, 1, 128, 72, 203, 517, 33, "bfloat16", 100000.0, shards=2, head="untied"),
    Checkpoint("gqa12-v5", 24, 2, 64, 72, 203, 517, 20, "bfloat16", 50000.0, head="tied", style="v5"),
    Checkpoint("nobias", 4, 2, 64, 136, 203, 517, 32, "bfloat16", 1000000.0, bias=False, eps=0.01),
    Checkpoint("nobias-theta", 2, 1, 64, 40, 61, 131, None, "float32", 500.75, bias=False, head="untied"),
    Checkpoint("small-activations", 2, 1, 64, 200, 203, 259, 256, "bfloat16", 100000.0, head="untied", residual=0.004),
    Checkpoint("head-conflict", 2, 1, 64, 40, 61, 131, 24, "bfloat16", 100000.0, head="conflict"),
]
# fmt: on


def weights(spec, random):
    """Random weights by name. Scales are such that log-probabilities spread over nats and some heads attend sharply."""
    query, key_value = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def normal(*shape, scale, mean=0.0):
        return mean + scale * random.standard_normal(shape)

    def matrix(rows, columns, scale):
        return normal(rows, columns, scale=scale / columns**0.5)

    tensors = {}

    def linear(name, weight, bias_scale, bias_mean=0.0):
        tensors[name + ".weight"] = weight
        bias = normal(weight.shape[0], scale=bias_scale, mean=bias_mean)
        if spec.bias:
            tensors[name + ".bias"] = bias

    def norm(name, sign=1.0, shift=0.3):
        tensors[name + ".weight"] = normal(spec.hidden, scale=0.3, mean=1.0) * sign
        tensors[name + ".bias"] = normal(spec.hidden, scale=shift)

    # A tied matrix serves as the head too, whose scale decides how far the logits spread.
    head_scale = 3 / spec.hidden**0.5
    embedding_scale = 1.0 if spec.head == "untied" else head_scale
    embedding = normal(spec.vocabulary, spec.hidden, scale=embedding_scale * spec.residual)
    tensors["model.embed_tokens.weight"] = embedding
    for layer in range(spec.layers):
        prefix = f"model.layers.{layer}."
        norm(prefix + "input_layernorm")
        # From diffuse to sharp: the scores' standard deviation runs from about 1 to about 4.
        sharpness = np.repeat(np.geomspace(0.8, 3.2, spec.heads), spec.head_dim)[:, None]
        linear(prefix + "self_attn.q_proj", matrix(query, spec.hidden, 1.0) * sharpness, 0.5)
        linear(prefix + "self_attn.k_proj", matrix(key_value, spec.hidden, 1.2), 0.5)
        linear(prefix + "self_attn.v_proj", matrix(key_value, spec.hidden, 1.2), 0.3)
        linear(prefix + "self_attn.o_proj", matrix(spec.hidden, query, 1.0) * spec.residual, 0.1 * spec.residual)
        norm(prefix + "post_attention_layernorm")
        up_scale, up_bias, down_scale = (0.3, -2.5, 30.0) if spec.gelu_tail else (1.5, 0.0, 1.0)
        linear(prefix + "mlp.c_fc", matrix(spec.intermediate, spec.hidden, up_scale), up_scale / 3, up_bias)
        down = matrix(spec.hidden, spec.intermediate, down_scale)
        linear(prefix + "mlp.c_proj", down * spec.residual, 0.1 * spec.residual)
    # Tied to the embedding, a token would be its own most likely successor; gains of either sign prevent it.
    norm("model.norm", sign=random.choice([-1.0, 1.0], spec.hidden), shift=0.15)
    if spec.head == "copy":
        tensors["lm_head.weight"] = embedding.copy()
    elif spec.head in ("untied", "conflict"):
        tensors["lm_head.weight"] = normal(spec.vocabulary, spec.hidden, scale=head_scale)
    return {name: torch.from_numpy(tensor).to(STORED[spec.stored]) for name, tensor in tensors.items()}


def published_config(spec):
    """The keys and their order are those of the published configs."""
    config = {
        "architectures": ["Starcoder2ForCausalLM"],
        "attention_dropout": 0.1,
        "bos_token_id": 0,
        "embedding_dropout": 0.1,
        "eos_token_id": 0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": spec.hidden,
        "initializer_range": 0.018042,
        "intermediate_size": spec.intermediate,
        "max_position_embeddings": 16384,
        "mlp_type": "default",
        "model_type": "starcoder2",
        "norm_epsilon": spec.eps,
        "norm_type": "layer_norm",
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "residual_dropout": 0.1,
        "rope_theta": int(spec.theta) if spec.theta == int(spec.theta) else spec.theta,
        "sliding_window": spec.window,
        "torch_dtype": spec.stored,
        "transformers_version": "4.37.0.dev0",
        "use_bias": spec.bias,
        "use_cache": True,
        "vocab_size": spec.vocabulary,
    }
    if spec.head_dim * spec.heads != spec.hidden:
        config["head_dim"] = spec.head_dim
    if spec.head == "untied":
        config["tie_word_embeddings"] = False
    elif spec.head == "tied":
        config["tie_word_embeddings"] = True
    return config | spec.extra


def write_v5_config(spec, directory):
    """As transformers 5 saves it: rope_parameters for rope_theta, dtype for torch_dtype."""
    Starcoder2Config(
        architectures=["Starcoder2ForCausalLM"],
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=16384,
        norm_epsilon=spec.eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.theta},
        sliding_window=spec.window,
        dtype=spec.stored,
        use_bias=spec.bias,
        vocab_size=spec.vocabulary,
        tie_word_embeddings=spec.head == "tied",
    ).save_pretrained(directory)


def write_weights(tensors, shards, directory):
    def save(part, path):
        save_file({name: tensors[name] for name in part}, path, metadata={"format": "pt"})
        path.chmod(0o644)

    if shards == 1:
        save(tensors, directory / "model.safetensors")
        return
    names = list(tensors)
    cut = [round(i * len(names) / shards) for i in range(shards + 1)]
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save(names[cut[i] : cut[i + 1]], directory / file)
        weight_map |= {name: file for name in names[cut[i] : cut[i + 1]]}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write(spec, seed, directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_weights(weights(spec, np.random.default_rng(seed)), spec.shards, directory)
    if spec.style == "v5":
        write_v5_config(spec, directory)
    else:
        (directory / "config.json").write_text(json.dumps(published_config(spec), indent=2) + "\n")
    if spec.generation_config:
        (directory / "generation_config.json").write_text(json.dumps(spec.generation_config, indent=2) + "\n")


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/goldens")
    for number, spec in enumerate(CHECKPOINTS):
        write(spec, 1000 + number, root / spec.name)
        size = sum(file.stat().st_size for file in (root / spec.name).iterdir())
        print(f"{spec.name:20} {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
