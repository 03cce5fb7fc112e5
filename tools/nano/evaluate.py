"""Measures crates/rigel-nano/model in float32 with transformers, on the files that training never saw.

    python tools/nano/evaluate.py crates/rigel-nano/model --corpus WORK/corpus.jsonl

Writes eval.json into the model's folder. Everything is greedy and seeded, so the numbers repeat. Without `--corpus`
the share of verbatim continuations is left out.
"""

import argparse
import ast
import json
import platform
import random
import re
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import data
import prompts
import verbatim

COMPLETIONS, COMPLETION_TOKENS = 200, 128
INFILLS, INFILL_TOKENS, LINES_BEFORE, LINES_AFTER = 300, 48, 10, 4
RESPONSES, TOTAL_TOKENS = 100, 256  # the model card's `respond` bounds prompt and answer together by 256
STRIDE = 512

SAMPLES = {
    "infill": (
        data.FIM_PREFIX + "def read_lines(path):\n    with open(path) as f:\n        " + data.FIM_SUFFIX
        + "\n    return lines\n" + data.FIM_MIDDLE
    ),
    "instruct": data.instruct_prompt("Write a Python function `close(self)`. Close the file."),
}


class Model:
    def __init__(self, folder):
        self.net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        # tokenizer.json is read as it is: transformers 5 rebuilds a `GPT2Tokenizer` without its `Digits` step, which
        # changes the ids of blanks before a digit.
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def id(self, token):
        return self.tokenizer.token_to_id(token)

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def greedy_ids(self, inputs, limit, stop_ids, stop_text=None):
        """Returns `(text, stopped)`: the continuation, and whether it ended by itself."""
        cache, out = None, []
        for _ in range(limit):
            step = self.net(torch.tensor([inputs]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, token = step.past_key_values, step.logits[0, -1].argmax().item()
            if token in stop_ids:
                return self.decode(out), True
            out.append(token)
            inputs = [token]
            if stop_text and stop_text.search(self.decode(out)):
                return self.decode(out), True
        return self.decode(out), False

    def greedy(self, prompt, *limits):
        return self.greedy_ids(self.encode(prompt), *limits)

    @torch.no_grad()
    def loss(self, text):
        """`(nats, tokens)` over a file after one `<|endoftext|>`. Windows overlap by STRIDE, more than the layers'
        windows reach together, so every token is judged with all the context that the model can see."""
        ids = torch.tensor(self.encode(data.EOT + text))
        total = 0.0
        for start in range(0, len(ids) - 1, STRIDE):
            first = max(0, start - STRIDE)
            window = ids[first : start + STRIDE + 1]
            logits = self.net(window[None, :-1], use_cache=False).logits[0, start - first :]
            total += torch.nn.functional.cross_entropy(logits, window[start - first + 1 :], reduction="sum").item()
        return total, len(ids) - 1


def parses(source):
    try:
        ast.parse(source)
        return True
    except (SyntaxError, ValueError):
        return False


def held_out_loss(model, held):
    nats = tokens = size = 0
    for text in held.values():
        file_nats, file_tokens = model.loss(text)
        nats, tokens, size = nats + file_nats, tokens + file_tokens, size + len(text.encode())
    return {"files": len(held), "tokens": tokens, "bytes": size, "nats_per_token": nats / tokens, "nats_per_byte": nats / size}


def completions(model, held, rng):
    """The prompt is a function's signature, with its docstring if it has one, without the newline at its end: in the
    tokenizer a newline and the indentation after it are one token, so a prompt that ends between them asks for a line
    that is not indented. A completion ends at `<|endoftext|>`, `<file_sep>` or the first line that is not indented; at
    the token limit its last, partial line is dropped. It counts if it is not blank and prompt + completion is accepted
    by `ast.parse`."""
    found = [f for text in held.values() for f in data.functions(text) if len(model.encode(f.head)) <= 256]
    chosen = rng.sample(found, COMPLETIONS)
    dedent, good, ended, whole = re.compile(r"\n(?=[^\s])"), 0, 0, 0
    for function in chosen:
        prompt = function.head.rstrip()
        text, stopped = model.greedy(prompt, COMPLETION_TOKENS, (0, model.id(data.FILE_SEP)), dedent)
        body = dedent.split(text)[0] if stopped else text[: text.rfind("\n") + 1]
        good += bool(body.strip()) and parses(prompt + body)
        ended += stopped
        whole += stopped and not dedent.search(text)
    return {"functions": COMPLETIONS, "with_docstring": sum(f.doc is not None for f in chosen),
            "parse": good / COMPLETIONS, "end_within_limit": ended / COMPLETIONS,
            "end_with_a_stop_token": whole / COMPLETIONS}


def statement_lines(text):
    """Lines on which a statement inside a function starts; docstrings are not statements here."""
    lines = set()
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                if isinstance(node, ast.stmt) and node is not function and not docstring:
                    lines.add(node.lineno - 1)
    return sorted(lines)


def infills(model, held, rng):
    """One line is missing after its indentation; the prompt shows LINES_BEFORE lines before it and LINES_AFTER after
    it. Exact means the same characters, trailing blanks apart."""
    spots = [(path, at) for path, text in held.items() for at in statement_lines(text)]
    exact = stopped = length = 0
    for path, at in rng.sample(spots, INFILLS):
        prefix, middle, suffix = data.line_infill(held[path].split("\n"), at, LINES_BEFORE, LINES_AFTER)
        prompt = f"{data.FIM_PREFIX}{prefix}{data.FIM_SUFFIX}{suffix}{data.FIM_MIDDLE}"
        text, stop = model.greedy(prompt, INFILL_TOKENS, (0, model.id(data.FILE_SEP)))
        exact += text.rstrip() == middle
        stopped += stop
        length += len(middle)
    return {"lines": INFILLS, "exact_match": exact / INFILLS, "stop_by_itself": stopped / INFILLS,
            "mean_line_characters": length / INFILLS}


def responses(model, held, rng):
    """The instruct form for documented held-out functions, stopping as the model card does: `<|endoftext|>` or `###`.
    A response counts if it ends by itself and its ```python block is accepted by `ast.parse`."""
    found = [f for text in held.values() for f in data.functions(text) if f.doc and len(f.source) < 1100]
    good, ended, shown = 0, 0, []
    for function in rng.sample(found, RESPONSES):
        prompt = data.instruct_prompt(data.instruction(function))
        text, stopped = model.greedy(prompt, max(1, TOTAL_TOKENS - len(model.encode(prompt))), (0, model.id("###")))
        block = re.search(r"```python\n(.*?)```", text, re.S)
        good += bool(stopped and block and block[1].strip() and parses(block[1]))
        ended += stopped
        shown.append({"instruction": data.instruction(function), "response": text})
    return {"functions": RESPONSES, "parse": good / RESPONSES, "end_within_limit": ended / RESPONSES}, shown[:5]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, help="corpus.jsonl, as corpus.py writes it")
    args = parser.parse_args()
    folder = args.model
    model, (_, held) = Model(folder), data.read_library()
    assert all(p.isfinite().all() for p in model.net.parameters())
    instruct, shown = responses(model, held, random.Random(2))
    stops = (0, model.id(data.FILE_SEP), model.id("###"))
    report = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "held_out_loss": held_out_loss(model, held),
        "completion": completions(model, held, random.Random(0)),
        "infill": infills(model, held, random.Random(1)),
        "instruct": instruct,
        "prompts": prompts.run(model, stops),
        "samples": {name: {"prompt": prompt, "output": model.greedy(prompt, 96, stops)[0]} for name, prompt in SAMPLES.items()},
        "instruct_samples": shown,
    }
    if args.corpus:
        training = verbatim.Training(args.corpus)
        report["verbatim"] = verbatim.share(model, held, training, random.Random(3))
        for row in report["prompts"]:
            row["verbatim"] = training.has(row["prompt"] + row["output"])
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (folder / "eval.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
