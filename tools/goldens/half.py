"""Adds transformers' half-precision forward to the goldens: the yardstick that the CUDA backend's error is held to.

    python tools/goldens/half.py random [tests/goldens]
    python tools/goldens/half.py nano [tests/goldens]

As a user would run the model: weights in the dtype that a GPU computes in (float16 for a checkpoint stored in float16,
else bfloat16), the default attention implementation, logits as they come and their log-softmax in float32. Each
sequence is scored whole, and so is each greedy continuation after its prompt. Only `logprobs_half` and `half` are
written; every other byte of a file stays as it was.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import hf
import numpy as np
import torch
from checkpoints import CHECKPOINTS
from reference import scored
from transformers import AutoModelForCausalLM

# The default attention in float32 against the recorded values, which are eager attention's: another order of sums.
SAME = 1e-4


def load(directory, dtype):
    """In `dtype` from the start: see hf.load."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    return model


def half_dtype(directory):
    config = json.loads((directory / "config.json").read_text())
    return torch.float16 if config.get("torch_dtype", config.get("dtype")) == "float16" else torch.bfloat16


@torch.no_grad()
def logprobs(model, ids):
    """[tokens, vocabulary] in float32."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


def check_window(model):
    """Attention of one layer reaches back to distance window - 1 and no further, in this dtype and implementation."""
    window = model.config.sliding_window
    if window is None:
        return
    layers, model.model.layers = model.model.layers, model.model.layers[:1]
    ids = [1 + i % 7 for i in range(window + 1)]
    before, after = logprobs(model, ids), logprobs(model, [ids[0] + 1] + ids[1:])
    model.model.layers = layers
    assert (before[window - 1] != after[window - 1]).any(), "the key at distance window - 1 is hidden"
    assert (before[window] == after[window]).all(), "the key at distance window is visible"


def with_half(entry, values):
    """The entry with `logprobs_half` behind the other log-probabilities."""
    fields = {key: value for key, value in entry.items() if key != "logprobs_half"}
    place = 1 + max(i for i, key in enumerate(fields) if key.startswith("logprobs"))
    items = list(fields.items())
    return dict(items[:place] + [("logprobs_half", values)] + items[place:])


def without_half(golden):
    def bare(entries):
        return [{key: value for key, value in entry.items() if key != "logprobs_half"} for entry in entries]

    golden = {key: value for key, value in golden.items() if key != "half"}
    return golden | {"sequences": bare(golden["sequences"]), "greedy": bare(golden["greedy"])}


def add(directory, path):
    golden = without_half(json.loads(path.read_text()))
    dtype = half_dtype(directory)
    model = load(directory, dtype)
    assert (golden["transformers"], golden["torch"]) == (version("transformers"), version("torch")), path
    check_window(model)
    exact = load(directory, torch.float32)
    errors, errors_greedy = [], []
    sequences, greedy = [], []
    for entry in golden["sequences"]:
        ids, expected = entry["ids"], entry["logprobs"][1:]
        again = scored(logprobs(exact, ids), ids)
        assert all(abs(a - b) < SAME for a, b in zip(again.tolist(), expected, strict=True)), (path, entry["name"])
        values = hf.floats(scored(logprobs(model, ids), ids))
        errors += [abs(a - b) for a, b in zip(values, expected, strict=True)]
        sequences.append(with_half(entry, [None] + values))
    for entry in golden["greedy"]:
        ids = entry["prompt"] + entry["ids"]
        values = hf.floats(scored(logprobs(model, ids), ids)[len(entry["prompt"]) - 1 :])
        errors_greedy += [abs(a - b) for a, b in zip(values, entry["logprobs"], strict=True)]
        greedy.append(with_half(entry, values))
    half = {
        "dtype": str(dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "transformers": version("transformers"),
        "torch": version("torch"),
    }
    whole = {}
    for key, value in golden.items():
        if key == "sequences":
            whole["half"] = half
        whole[key] = {"sequences": sequences, "greedy": greedy}.get(key, value)
    before = hf.render(golden, 0)
    assert hf.render(without_half(whole), 0) == before
    hf.dump(whole, path)
    return half, np.array(errors), np.array(errors_greedy)


def row(name, half, *errors):
    """A row of the table in README.md."""
    cells = [f"{len(e)} | {e.mean():.4f} | {np.quantile(e, 0.99):.4f}" for e in errors]
    print(f"| {name} | {half} | {' | '.join(cells)} |", flush=True)


def main():
    which = sys.argv[1] if len(sys.argv) > 1 else ""
    root = Path(sys.argv[2] if len(sys.argv) > 2 else "tests/goldens")
    torch.set_num_threads(1)
    random = [(f"`{spec.name}`", root / spec.name, root / f"{spec.name}.json") for spec in CHECKPOINTS]
    chosen = {"random": random, "nano": [("`nano`", Path("crates/rigel-nano/model"), root / "nano.json")]}.get(which)
    if chosen is None:
        raise SystemExit(__doc__)
    found = []
    for name, directory, path in chosen:
        half, *errors = add(directory, path)
        row(name, f"{half['dtype']}, {half['attention']}", *errors)
        found.append(errors)
    if len(found) > 1:
        row("together", "", *(np.concatenate(errors) for errors in zip(*found)))


if __name__ == "__main__":
    main()
