"""StarCoder2's forward pass in float64, written to be read: one sequence, no cache, no batching.

It shares no code with transformers, so that agreement between the two means something. Each choice that an engine can
get wrong is a method of its own; mutations.py overrides them one at a time.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


class Reference:
    def __init__(self, directory):
        directory = Path(directory)
        config = json.loads((directory / "config.json").read_text())
        self.hidden = config["hidden_size"]
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or self.hidden // self.heads
        self.window = config.get("sliding_window")  # None: every earlier token is visible
        self.eps = config["norm_epsilon"]
        # transformers 5 writes rope_parameters, everything before it rope_theta.
        self.theta = config["rope_theta"] if "rope_theta" in config else config["rope_parameters"]["rope_theta"]
        self.weights = {}
        for shard in sorted(directory.glob("*.safetensors")):
            self.weights |= {name: tensor.double() for name, tensor in load_file(shard).items()}

    def linear(self, x, name):
        """`x` [tokens, in] → [tokens, out]. Without `use_bias` the checkpoint holds no bias."""
        y = x @ self.weights[name + ".weight"].T
        bias = self.weights.get(name + ".bias")
        return y if bias is None else y + bias

    def norm(self, x, name):
        """LayerNorm with the biased variance."""
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred / (variance + self.eps).sqrt() * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def gelu(self, x):
        """The tanh approximation."""
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def rotation(self, tokens):
        """cos and sin [tokens, head_dim / 2] of position · theta^(−2p / head_dim)."""
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float64)
        frequencies = self.theta ** (-2 * pairs / self.head_dim)
        angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
        return angles.cos(), angles.sin()

    def rotate(self, x, cos, sin):
        """`x` [tokens, head_dim]: element p turns with element p + head_dim / 2."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def visible(self, tokens):
        """[query, key]: a query sees itself and the window − 1 tokens before it."""
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
        seen = distance >= 0
        return seen if self.window is None else seen & (distance <= self.window - 1)

    def kv_head(self, head):
        return head // (self.heads // self.kv_heads)

    def scale(self):
        return self.head_dim**-0.5

    def head(self):
        """A tied checkpoint has no lm_head.weight. One that has both is read as transformers 5 reads it: not tied."""
        return self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])

    def attention(self, x, name):
        tokens = x.shape[0]
        q = self.linear(x, name + ".q_proj").view(tokens, self.heads, self.head_dim)
        k = self.linear(x, name + ".k_proj").view(tokens, self.kv_heads, self.head_dim)
        v = self.linear(x, name + ".v_proj").view(tokens, self.kv_heads, self.head_dim)
        cos, sin = self.rotation(tokens)
        hidden_keys = ~self.visible(tokens)
        outputs = []
        for head in range(self.heads):
            query = self.rotate(q[:, head], cos, sin)
            key = self.rotate(k[:, self.kv_head(head)], cos, sin)
            scores = (query @ key.T * self.scale()).masked_fill(hidden_keys, -torch.inf)
            outputs.append(scores.softmax(-1) @ v[:, self.kv_head(head)])
        return self.linear(torch.cat(outputs, dim=-1), name + ".o_proj")

    def logits(self, ids):
        """[tokens, vocabulary]"""
        h = self.weights["model.embed_tokens.weight"][list(ids)]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            h = h + self.attention(self.norm(h, name + ".input_layernorm"), name + ".self_attn")
            y = self.norm(h, name + ".post_attention_layernorm")
            h = h + self.linear(self.gelu(self.linear(y, name + ".mlp.c_fc")), name + ".mlp.c_proj")
        return self.norm(h, "model.norm") @ self.head().T

    def logprobs(self, ids):
        """[tokens, vocabulary]: row i is the distribution of the token that follows ids[..=i]."""
        return self.logits(ids).log_softmax(-1)


def scored(logprobs, ids):
    """The log-probability of each token of `ids` but the first, given those before it."""
    return logprobs[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])[:, 0]
