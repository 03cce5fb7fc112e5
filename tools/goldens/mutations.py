"""Shows that the goldens catch mistakes: each of the usual ones, made in the float64 model, must move them visibly.

    python tools/goldens/mutations.py [tests/goldens]

Exits with 1 if some mutation moves no checkpoint's log-probabilities by twice the tolerance of the tests.
"""

import json
import sys
from pathlib import Path

import hf
import torch
from checkpoints import CHECKPOINTS
from reference import Reference, scored

TOLERANCE = 2e-3


class ErfGelu(Reference):
    def gelu(self, x):
        return torch.nn.functional.gelu(x)


class WithoutTerm(Reference):
    """Drops the bias of every module whose name ends in `module`."""

    module = ""

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T if name.endswith(self.module) else super().linear(x, name)

    def norm(self, x, name):
        y = super().norm(x, name)
        return y - self.weights[name + ".bias"] if name.endswith(self.module) else y


def without(module):
    return type(module, (WithoutTerm,), {"module": module})


class BiasAfterRope(Reference):
    """Adds the bias of q and k after the rotation."""

    def linear(self, x, name):
        if not name.endswith(("q_proj", "k_proj")):
            return super().linear(x, name)
        self.late = self.weights.get(name + ".bias", torch.zeros(1, dtype=torch.float64))
        y = x @ self.weights[name + ".weight"].T
        if self.late.numel() == 1:
            return y
        cos, sin = self.rotation(x.shape[0])
        # rotate() will turn the bias; turned back first, it comes out as it was.
        back = [self.rotate(head.expand(x.shape[0], -1), cos, -sin) for head in self.late.split(self.head_dim)]
        return y + torch.cat(back, dim=-1)


class WindowPlusOne(Reference):
    def visible(self, tokens):
        self.window, window = self.window and self.window + 1, self.window
        seen = super().visible(tokens)
        self.window = window
        return seen


class WindowMinusOne(Reference):
    def visible(self, tokens):
        self.window, window = self.window and self.window - 1, self.window
        seen = super().visible(tokens)
        self.window = window
        return seen


class NoWindow(Reference):
    def visible(self, tokens):
        return torch.ones(tokens, tokens, dtype=torch.bool).tril()


class NotCausal(Reference):
    """Sees the next token too."""

    def visible(self, tokens):
        return super().visible(tokens) | torch.ones(tokens, 1, dtype=torch.bool).expand(tokens, tokens).triu(1).tril(1)


class RopeBf16Positions(Reference):
    """Positions rounded to bfloat16: wrong from 257 on."""

    def rotation(self, tokens):
        cos, sin = super().rotation(tokens)
        rounded = torch.arange(tokens).bfloat16().long()
        cos, sin = super().rotation(int(rounded.max()) + 1)
        return cos[rounded], sin[rounded]


class RopeBf16Angles(Reference):
    """Frequencies, positions and angles all in bfloat16."""

    def rotation(self, tokens):
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float64)
        frequencies = (self.theta ** (-2 * pairs / self.head_dim)).bfloat16()
        angles = (torch.arange(tokens).bfloat16()[:, None] * frequencies).double()
        return angles.cos(), angles.sin()


class RopeBf16Frequencies(Reference):
    """Only the frequencies in bfloat16, as `.to(bfloat16)` of a loaded model makes them."""

    def rotation(self, tokens):
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float64)
        frequencies = (self.theta ** (-2 * pairs / self.head_dim)).bfloat16().double()
        angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
        return angles.cos(), angles.sin()


class RopeInterleaved(Reference):
    """Turns element 2p with element 2p + 1."""

    def rotate(self, x, cos, sin):
        even, odd = x[:, 0::2], x[:, 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(1)


class RopeBackwards(Reference):
    """A sign error in one of the two: q turns forwards, k backwards. attention() rotates them in turns."""

    def rotate(self, x, cos, sin):
        self.calls = getattr(self, "calls", 0) + 1
        return super().rotate(x, cos, sin if self.calls % 2 else -sin)


class RopeMissing(Reference):
    def rotate(self, x, cos, sin):
        return x


class ThetaTruncated(Reference):
    def __init__(self, directory):
        super().__init__(directory)
        self.theta = int(self.theta)


class ThetaDefault(Reference):
    """The key not read, and 10000, the config class's default, taken instead."""

    def __init__(self, directory):
        super().__init__(directory)
        self.theta = 10000.0


class EpsSmaller(Reference):
    """1e-6 where the config says 1e-5."""

    def __init__(self, directory):
        super().__init__(directory)
        self.eps = 1e-6 if self.eps == 1e-5 else self.eps


class EpsNotRead(Reference):
    """1e-5 whatever the config says."""

    def __init__(self, directory):
        super().__init__(directory)
        self.eps = 1e-5


class RmsNorm(Reference):
    def norm(self, x, name):
        root = ((x**2).mean(-1, keepdim=True) + self.eps).sqrt()
        return x / root * self.weights[name + ".weight"] + self.weights[name + ".bias"]


class UnbiasedVariance(Reference):
    def norm(self, x, name):
        root = (x.var(-1, keepdim=True) + self.eps).sqrt()
        return (x - x.mean(-1, keepdim=True)) / root * self.weights[name + ".weight"] + self.weights[name + ".bias"]


class NoFinalNorm(Reference):
    def norm(self, x, name):
        return x if name == "model.norm" else super().norm(x, name)


class NoScale(Reference):
    def scale(self):
        return 1.0


class ScaleFromHidden(Reference):
    """hidden / heads taken for the head size, although the config gives head_dim."""

    def scale(self):
        return (self.hidden / self.heads) ** -0.5


class HeadsInterleaved(Reference):
    def kv_head(self, head):
        return head % self.kv_heads


class AlwaysTied(Reference):
    def head(self):
        return self.weights["model.embed_tokens.weight"]


MUTATIONS = {
    "erf GELU instead of tanh": ErfGelu,
    **{
        f"no bias on {module}": without(module) for module in ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj")
    },
    **{
        f"no shift in {module}": without(module)
        for module in ("input_layernorm", "post_attention_layernorm", "model.norm")
    },
    "bias of q and k after RoPE": BiasAfterRope,
    "window + 1": WindowPlusOne,
    "window - 1": WindowMinusOne,
    "no window": NoWindow,
    "next token visible": NotCausal,
    "RoPE positions in bf16": RopeBf16Positions,
    "RoPE frequencies in bf16": RopeBf16Frequencies,
    "RoPE angles in bf16": RopeBf16Angles,
    "RoPE interleaved": RopeInterleaved,
    "RoPE opposite on q and k": RopeBackwards,
    "no RoPE": RopeMissing,
    "rope_theta truncated to an integer": ThetaTruncated,
    "rope_theta not read (10000)": ThetaDefault,
    "eps 1e-6 instead of 1e-5": EpsSmaller,
    "norm_epsilon not read (1e-5)": EpsNotRead,
    "RMSNorm instead of LayerNorm": RmsNorm,
    "unbiased variance": UnbiasedVariance,
    "no final norm": NoFinalNorm,
    "no 1/sqrt(head_dim)": NoScale,
    "scale from hidden / heads": ScaleFromHidden,
    "kv head j % kv_heads": HeadsInterleaved,
    "head always tied": AlwaysTied,
}


def movement(model, golden):
    """The largest |Δlogprob| over the golden's scored tokens."""
    worst = 0.0
    for entry in golden["sequences"]:
        expected = torch.tensor(entry["logprobs"][1:], dtype=torch.float64)
        moved = (scored(model.logprobs(entry["ids"]), entry["ids"]) - expected).abs()
        # nan_to_num: a model that divides by zero has moved far enough.
        worst = max(worst, float(moved.nan_to_num(torch.inf).max()) if len(moved) else 0.0)
    return worst


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/goldens")
    torch.set_num_threads(1)
    goldens = {spec.name: json.loads((root / f"{spec.name}.json").read_text()) for spec in CHECKPOINTS}
    table = []
    print(f"{'mutation':36} {'most visible on':20} max |Δlogprob|  checkpoints that see it")
    for name, mutation in MUTATIONS.items():
        moved = {checkpoint: movement(mutation(root / checkpoint), golden) for checkpoint, golden in goldens.items()}
        best = max(moved, key=moved.get)
        seen = [checkpoint for checkpoint, delta in moved.items() if delta >= 2 * TOLERANCE]
        table.append(
            {
                "mutation": name,
                "checkpoint": best,
                "max_logprob_change": float(f"{moved[best]:.3g}"),
                "visible_on": seen,
            }
        )
        print(f"{name:36} {best:20} {moved[best]:14.3g}  {len(seen)}", flush=True)
    hf.dump({"tolerance": TOLERANCE, "mutations": table}, root / "mutations.json")
    invisible = [row["mutation"] for row in table if not row["visible_on"]]
    if invisible:
        raise SystemExit(f"invisible: {', '.join(invisible)}")


if __name__ == "__main__":
    main()
