"""Writes the golden values of every checkpoint that checkpoints.py made.

python tools/goldens/goldens.py [tests/goldens]
"""

import sys
from importlib.metadata import version
from pathlib import Path

import hf
import numpy as np
import torch
from checkpoints import CHECKPOINTS
from reference import Reference

LONG = 160
# Greedy prompts are drawn again until no step is nearer to a tie than this and id 0, end of text, never comes up: a
# test may then compare all tokens. Random models like to repeat themselves, so of several such the most varied is kept.
CLEAR = 2e-2
CANDIDATES = 8


def sampled(reference, random, tokens):
    """A sequence that the model itself draws at temperature 1: tokens it finds likely, and some it does not."""
    ids = [int(random.integers(reference_vocabulary(reference)))]
    while len(ids) < tokens:
        cumulative = reference.logprobs(ids)[-1].exp().cumsum(-1)
        ids.append(min(int(torch.searchsorted(cumulative, random.random())), len(cumulative) - 1))
    return ids


def reference_vocabulary(reference):
    return reference.weights["model.embed_tokens.weight"].shape[0]


def inputs(reference, random):
    """Names and ids: the shortest, the edges of the window, far beyond it."""
    window = reference.window

    def uniform(tokens):
        return random.integers(reference_vocabulary(reference), size=tokens).tolist()

    yield "one token", uniform(1)
    yield "two tokens", uniform(2)
    if window is None:
        yield "uniform", uniform(40)
        # Positions above 256 are not exact in bfloat16.
        yield "beyond 256", uniform(300)
    elif window > LONG:
        yield "uniform, within the window", uniform(40)
    else:
        yield "window - 1", uniform(window - 1)
        yield "window", uniform(window)
        yield "window + 1", uniform(window + 1)
    yield "sampled", sampled(reference, random, LONG)


def clear_greedy(model, random, name, tokens, new_tokens):
    clear = []
    for _ in range(200):
        prompt = random.integers(model.config.vocab_size, size=tokens).tolist()
        entry = hf.greedy(model, prompt, new_tokens, name=name)
        if min(entry["margins"]) >= CLEAR and 0 not in entry["ids"]:
            clear.append(entry)
        if len(clear) == CANDIDATES:
            return max(clear, key=lambda entry: len(set(entry["ids"])))
    raise SystemExit(f"too few clear greedy continuations for {name}")


def golden(directory, seed):
    random = np.random.default_rng(seed)
    reference = Reference(directory)
    model, model_bf16 = hf.load(directory), hf.load(directory, torch.bfloat16)
    window = reference.window or 0
    greedy = [
        clear_greedy(model, random, "short prompt", 5, max(48, window + 16) if window < LONG else 48),
        clear_greedy(model, random, "prompt as long as the window", window if 0 < window < LONG else 40, 48),
    ]
    result = {
        "checkpoint": directory.name,
        "transformers": version("transformers"),
        "torch": version("torch"),
        "sequences": [hf.score(model, model_bf16, ids, name=name) for name, ids in inputs(reference, random)],
        "greedy": greedy,
    }
    for entry in greedy:
        assert hf.check_cached_generate(model, entry), f"{directory.name}: cached generate differs"
    return result, hf.check_float64(reference, result)


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/goldens")
    torch.set_num_threads(1)
    summary, errors = [], []
    for number, spec in enumerate(CHECKPOINTS):
        result, worst = golden(root / spec.name, 2000 + number)
        assert worst < 1e-4, f"{spec.name}: transformers and the float64 model differ by {worst}"
        hf.dump(result, root / f"{spec.name}.json")
        error = hf.bf16_error(result)
        errors.append(error)
        summary.append(
            {
                "checkpoint": spec.name,
                "scored_tokens": len(error),
                "float64_max_difference": float(f"{worst:.2e}"),
                "bf16_mean_error": float(f"{error.mean():.4g}"),
                "bf16_p99_error": float(f"{np.quantile(error, 0.99):.4g}"),
            }
        )
        spread = np.concatenate([np.array(e["logprobs"][1:], dtype=float) for e in result["sequences"]]).std()
        distinct = [len(set(entry["ids"])) for entry in result["greedy"]]
        print(summary[-1], f"logprob std {spread:.2f}, distinct greedy tokens {distinct}", flush=True)
    pooled = np.concatenate(errors)
    hf.dump(
        {
            "transformers": version("transformers"),
            "torch": version("torch"),
            "scored_tokens": len(pooled),
            "bf16_mean_error": float(f"{pooled.mean():.4g}"),
            "bf16_p99_error": float(f"{np.quantile(pooled, 0.99):.4g}"),
            "checkpoints": summary,
        },
        root / "index.json",
    )
    print(
        f"{len(pooled)} scored tokens, bf16 mean {pooled.mean():.4g}, 99th percentile {np.quantile(pooled, 0.99):.4g}"
    )


if __name__ == "__main__":
    main()
