"""transformers as the reference: whole-sequence forwards without a cache, and what the golden files record of them."""

import json

import numpy as np
import torch
from reference import scored
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

TOP = 5
# Below this difference between the two best logits, two correct programs may choose differently.
TIE = 1e-2


def load(directory, dtype=torch.float32):
    """Loading in bfloat16 keeps RoPE's frequencies in float32; `.to(bfloat16)` after loading would round them too."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    return model


@torch.no_grad()
def logits(model, ids):
    """[tokens, vocabulary], upcast exactly to float64, so that what follows adds no error of its own."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()


def logprobs(model, ids):
    return logits(model, ids).log_softmax(-1)


def floats(tensor):
    """The shortest decimals that read back as the same float32."""
    return [float(str(np.float32(value))) for value in tensor.tolist()]


def score(model, model_bf16, ids, **names):
    """One entry of `sequences`."""
    table = logprobs(model, ids)
    top = table.topk(TOP)
    return names | {
        "ids": ids,
        "logprobs": [None] + floats(scored(table, ids)),
        "logprobs_bf16": [None] + floats(scored(logprobs(model_bf16, ids), ids)),
        "next_top_ids": top.indices.tolist(),
        "next_top_logprobs": [floats(row) for row in top.values],
    }


def greedy(model, prompt, new_tokens, **names):
    """One entry of `greedy`: `new_tokens` steps, end-of-text ignored."""
    ids, margins, values = list(prompt), [], []
    for _ in range(new_tokens):
        last = logits(model, ids)[-1]
        best, second = last.topk(2).values
        margins.append(best - second)
        ids.append(int(last.argmax()))
        values.append(last.log_softmax(-1).max())
    return names | {
        "prompt": list(prompt),
        "ids": ids[len(prompt) :],
        "logprobs": floats(torch.stack(values)),
        "margins": floats(torch.stack(margins)),
    }


@torch.no_grad()
def check_cached_generate(model, entry):
    """transformers' own cached decoding must choose the same tokens up to the first tie."""
    prompt = torch.tensor([entry["prompt"]])
    model.generation_config.eos_token_id = None
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(entry["ids"]),
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    for ours, theirs, margin in zip(entry["ids"], output[0, prompt.shape[1] :].tolist(), entry["margins"], strict=True):
        if ours != theirs:
            assert margin <= TIE, f"{entry['name']}: cached generate differs at a margin of {margin}"
            return False
    return True


def check_float64(reference, golden):
    """The largest |Δlogprob| between the float64 model and the golden, over scored tokens and the top of each row."""
    worst = 0.0
    for entry in golden["sequences"]:
        table = reference.logprobs(entry["ids"])
        pairs = [(scored(table, entry["ids"]), torch.tensor(entry["logprobs"][1:], dtype=torch.float64))]
        pairs.append(
            (
                table.gather(1, torch.tensor(entry["next_top_ids"])),
                torch.tensor(entry["next_top_logprobs"], dtype=torch.float64),
            )
        )
        worst = max([worst] + [float((a - b).abs().max()) for a, b in pairs if a.numel()])
    for entry in golden["greedy"]:
        table = reference.logprobs(entry["prompt"] + entry["ids"])[len(entry["prompt"]) - 1 : -1]
        for step, margin in enumerate(entry["margins"]):
            assert margin <= TIE or int(table[step].argmax()) == entry["ids"][step], (entry["name"], step)
    return worst


def bf16_error(golden):
    """|Δlogprob| of transformers' bfloat16 forward, every scored token."""
    pairs = []
    for entry in golden["sequences"]:
        pairs += zip(entry["logprobs"][1:], entry["logprobs_bf16"][1:], strict=True)
    return np.array([abs(a - b) for a, b in pairs])


def dump(value, path):
    """JSON with one line for each list of numbers."""
    path.write_text(render(value, 0) + "\n")


def render(value, depth):
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict) and value:
        items = [f"{pad}{json.dumps(key)}: {render(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{end}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value):
        return "[\n" + ",\n".join(pad + render(item, depth + 1) for item in value) + f"\n{end}]"
    return json.dumps(value, separators=(",", ":"))
