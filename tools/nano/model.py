"""The network of crates/rigel-nano/model for training on a CPU: the parameters, names and arithmetic of transformers' Starcoder2.

It computes only the band of attention that the sliding window leaves, which transformers does not, and it holds no
cache. `check` compares it with transformers' own `Starcoder2ForCausalLM`.
"""

import torch
from torch import nn
from torch.nn import functional

# The keys, and their order, are those of the published starcoder2 configs. `tie_word_embeddings` is absent there
# too: absent means true.
CONFIG = {
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "embedding_dropout": 0.0,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 2048,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "residual_dropout": 0.0,
    "rope_theta": 10000.0,
    "sliding_window": 128,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.0.dev0",
    "use_bias": True,
    "use_cache": True,
    "vocab_size": 4096,
}
HIDDEN, INTERMEDIATE, VOCABULARY = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
HEADS, WINDOW, LAYERS = CONFIG["num_attention_heads"], CONFIG["sliding_window"], CONFIG["num_hidden_layers"]
HEAD_DIM = HIDDEN // HEADS


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN)
        self.k_proj = nn.Linear(HIDDEN, HEAD_DIM)  # one key/value head
        self.v_proj = nn.Linear(HIDDEN, HEAD_DIM)
        self.o_proj = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x, cos, sin, mask):
        """`x`: [rows, length, hidden]; `length` is a multiple of the window W. A block of W queries sees its own block
        of keys and the one before: no other key is within the window."""
        rows, length, _ = x.shape
        blocks = length // WINDOW
        q = rotate(self.q_proj(x).view(rows, length, HEADS, HEAD_DIM), cos[:, None], sin[:, None])
        k = rotate(self.k_proj(x), cos, sin).view(rows, blocks, WINDOW, HEAD_DIM)
        v = self.v_proj(x).view(rows, blocks, WINDOW, HEAD_DIM)
        k = torch.cat((functional.pad(k, (0, 0, 0, 0, 1, 0))[:, :-1], k), 2).flatten(0, 1)
        v = torch.cat((functional.pad(v, (0, 0, 0, 0, 1, 0))[:, :-1], v), 2).flatten(0, 1)
        q = q.view(rows * blocks, WINDOW * HEADS, HEAD_DIM)
        scores = torch.bmm(q, k.transpose(1, 2)) * HEAD_DIM**-0.5
        scores = scores.view(rows, blocks, WINDOW * HEADS, 2 * WINDOW) + mask
        weights = scores.float().softmax(-1).to(v.dtype)
        out = torch.bmm(weights.flatten(0, 1), v)
        return self.o_proj(out.view(rows, length, HIDDEN))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(HIDDEN, INTERMEDIATE)
        self.c_proj = nn.Linear(INTERMEDIATE, HIDDEN)

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm = nn.LayerNorm(HIDDEN, CONFIG["norm_epsilon"])
        self.post_attention_layernorm = nn.LayerNorm(HIDDEN, CONFIG["norm_epsilon"])

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN, CONFIG["norm_epsilon"])


class Nano(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Body()
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=CONFIG["initializer_range"])
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids):
        """`ids`: [rows, length]. Returns the last layer's normed output, [rows, length, hidden]."""
        length = ids.shape[1]
        cos, sin = rope(length)
        x, mask = self.model.embed_tokens(ids), band(length // WINDOW)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.model.norm(x)

    def loss(self, block):
        """Mean cross entropy in nats per token of `block`, [rows, length + 1] ids."""
        hidden = self(block[:, :-1])
        return TiedCrossEntropy.apply(hidden.flatten(0, 1), self.model.embed_tokens.weight, block[:, 1:].flatten())


def softmax_gradient(logits, targets):
    """The summed cross entropy of `logits`, [tokens, vocabulary], and its gradient in bf16."""
    logits = logits.float()
    log_sum = logits.logsumexp(-1, keepdim=True)
    loss = (log_sum - logits.gather(1, targets[:, None])).sum()
    return loss, ((logits - log_sum).exp() - (torch.arange(logits.shape[1]) == targets[:, None]).float()).bfloat16()


class TiedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`, with the gradients made on the way, a few tokens at a time: the logits
    of a whole batch would be the largest tensor by far. The products are in bf16."""

    CHUNK = 512

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, hidden, weight, targets):
        total, tokens = 0.0, len(targets)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros(weight.shape)
        for start in range(0, tokens, TiedCrossEntropy.CHUNK):
            part = slice(start, start + TiedCrossEntropy.CHUNK)
            loss, d_logits = softmax_gradient(hidden[part] @ weight.T, targets[part])
            total += loss
            d_hidden[part] = d_logits @ weight
            d_weight += d_logits.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.tokens = tokens
        return total / tokens

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, scale):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.float() * (scale / ctx.tokens), d_weight * (scale / ctx.tokens), None


def rope(length):
    """cos and sin of the rotary embedding, [length, head_dim]."""
    rates = CONFIG["rope_theta"] ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angles = torch.arange(length)[:, None] * rates.repeat(2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return (x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin).to(x.dtype)


def band(blocks):
    """The additive mask of a block's queries (position, then head) over the previous block's keys and its own,
    [blocks, window · heads, 2 · window]: key distance 0 … window-1, and no key before the first."""
    query, key = torch.arange(WINDOW)[:, None] + WINDOW, torch.arange(2 * WINDOW)
    seen = (key <= query) & (key > query - WINDOW)
    seen = seen.repeat(blocks, 1, 1)
    seen[0, :, :WINDOW] = False
    return torch.zeros(seen.shape).masked_fill(~seen, -1e30).repeat_interleave(HEADS, 1)


@torch.no_grad()
def check(model):
    """Raises if transformers' model gives other logits for the same weights."""
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    theirs = Starcoder2ForCausalLM._from_config(Starcoder2Config(**CONFIG), attn_implementation="eager", dtype=torch.float32)
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    theirs.tie_weights()
    ids = torch.randint(VOCABULARY, (2, 4 * WINDOW), generator=torch.Generator().manual_seed(0))
    ours = functional.linear(model(ids), model.model.embed_tokens.weight)
    difference = (theirs(ids, use_cache=False).logits - ours).abs().max().item()
    assert difference < 1e-3, f"the logits differ by {difference}"
