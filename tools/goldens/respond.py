"""Writes tests/goldens/respond.json: what the `respond` function of StarCoder2-15B-Instruct's model card returns.

    python tools/goldens/respond.py [crates/rigel-nano/model] [tests/goldens/respond.json]

Needs the environment of requirements-respond.txt. The function's steps, and every argument, are the card's; the
pipeline and all that it does to prompt and text are transformers 4.39.0's.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers

# 4.39.0's window is off by one in eager attention and missing in sdpa, so the window is made wider than any prompt.
CONFIG_OVERRIDES = {"sliding_window": 4096}
MAX_LENGTH = 256

LONG = "Sort this list of words by their length, then print it:\n" + "\n".join(
    f"{number}. {word} ({len(word)} letters)"
    for number, word in enumerate(
        "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
        "sierra tango uniform victor whiskey xray yankee zulu".split(),
        1,
    )
)
CASES = [
    (
        "Write a quicksort function in Python with type hints and a 'less_than' parameter for custom sorting criteria.",
        "",
    ),
    ("Write a function that adds two numbers.", ""),
    ("Write a function that adds two numbers.", "Here is the function:\n```python\ndef add(a, b):\n"),
    # Spaces that decoding cleans up, in the prompt and around its end, where the text is cut by length.
    ("Is this right ? Do n't guess , it 's wrong !", ""),
    ("What does x . y mean ?", "It 's simple . We do n't"),
    ("Explain `a ! = b` .", "x "),
    ("Schreibe eine Funktion, die „Grüße“ ausgibt. 🙂", ""),
    ("数値のリストの合計を返す関数を書いてください。", "合計は"),
    # Special tokens in the text are parsed, and left out of the decoded text.
    ("Repeat: <|endoftext|> and ### and <file_sep>.", ""),
    ("", ""),
    ("Count to three.", "### 1\n"),
    ("Print 'it', \"is\" and \\n.", "```python\nprint("),
    # Prefixes that a model is likely to go on repeating, so that what it writes is cleaned up too.
    ("Compare two values.", "```python\nif x != y:\n    a = x != y\nif x != y:\n    b = x != y\nif x"),
    ("Repeat.", "it 's , it 's , it 's , it 's , it 's , it"),
    # Cut at MAX_LENGTH, from the right: no room is left, which 4.39.0 reports as an error.
    (LONG, ""),
    (LONG, "Sure ."),
]


def copy_for_4_39(source, target):
    """The checkpoint with CONFIG_OVERRIDES, its merges as tokenizers 0.15 reads them: "a b", not ["a", "b"]."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | CONFIG_OVERRIDES))
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))


class Recorder:
    """Notes the ids that go into and come out of `generate`, and the distance between the two best logits."""

    def __init__(self, model):
        self.model, self.generate = model, model.generate
        model.generate = self

    def __call__(self, input_ids=None, **arguments):
        self.prompt = input_ids[0].tolist()
        output = self.generate(input_ids=input_ids, **arguments)
        self.generated = output[0, len(self.prompt) :].tolist()
        with torch.no_grad():
            best = self.model(output).logits[0, len(self.prompt) - 1 : -1].topk(2).values
        self.margins = [float(f"{value:.6g}") for value in (best[:, 0] - best[:, 1]).tolist()]
        return output


def longest_that_fits(tokenizer):
    """As much of LONG as leaves room for one token."""

    def tokens(text):
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])

    return next(LONG[:end] for end in range(len(LONG), 0, -1) if tokens(LONG[:end]) < MAX_LENGTH)


def respond(pipeline, instruction, response_prefix):
    prompt = pipeline.tokenizer.apply_chat_template([{"role": "user", "content": instruction}], tokenize=False)
    prompt += response_prefix
    terminators = [pipeline.tokenizer.eos_token_id, pipeline.tokenizer.convert_tokens_to_ids("###")]
    result = pipeline(
        prompt,
        max_length=MAX_LENGTH,
        num_return_sequences=1,
        do_sample=False,
        eos_token_id=terminators,
        pad_token_id=pipeline.tokenizer.eos_token_id,
        truncation=True,
    )
    response = response_prefix + result[0]["generated_text"][len(prompt) :].split("###")[0].rstrip()
    return response


def main():
    assert transformers.__version__ == "4.39.0", "needs the environment of requirements-respond.txt"
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "crates/rigel-nano/model")
    output = Path(sys.argv[2] if len(sys.argv) > 2 else "tests/goldens/respond.json")
    torch.set_num_threads(1)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        copy_for_4_39(source, directory)
        pipeline = transformers.pipeline(
            model=str(directory),
            task="text-generation",
            torch_dtype=torch.float32,
            model_kwargs={"attn_implementation": "eager"},
        )
        recorder = Recorder(pipeline.model)
        tokenizer = pipeline.tokenizer
        for instruction, prefix in CASES + [(longest_that_fits(tokenizer), "")]:
            case = {"instruction": instruction, "response_prefix": prefix}
            try:
                response = respond(pipeline, instruction, prefix)
                raw = tokenizer.decode(recorder.generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                result = {
                    "prompt_ids": recorder.prompt,
                    "generated_ids": recorder.generated,
                    "margins": recorder.margins,
                    "response": response,
                    # Whether a decoder that keeps the spaces would return something else.
                    "cleaned_up": response != prefix + raw.split("###")[0].rstrip(),
                }
                counts = f"{len(recorder.prompt):4} + {len(recorder.generated):3} tokens"
                print(f"{counts}, cleaned up: {result['cleaned_up']}")
            except ValueError as error:
                result = {"prompt_ids": recorder.prompt, "error": str(error)}
                print(f"{len(recorder.prompt):4} tokens: {error}")
            cases.append(case | result)
        digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    write(
        output,
        {
            "checkpoint": source.name,
            "model_sha256": digest,
            "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0],
            "config_overrides": CONFIG_OVERRIDES,
            "max_length": MAX_LENGTH,
            "stop_ids": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("###")],
            "cases": cases,
        },
    )


def write(path, golden):
    """One line for each field of a case. (hf.dump would do it, but hf.py needs the other environment.)"""

    def fields(case):
        return ",\n".join(f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in case.items())

    cases = [fields(case) for case in golden.pop("cases")]
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in golden.items())
    body = ",\n".join("    {\n" + case + "\n    }" for case in cases)
    path.write_text("{\n" + head + '  "cases": [\n' + body + "\n  ]\n}\n")


if __name__ == "__main__":
    main()
