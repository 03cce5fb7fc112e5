"""Writes tests/goldens/nano.json: log-probabilities, greedy tokens, tokenizer vectors and chat prompts of crates/rigel-nano/model.

    python tools/goldens/nano.py [crates/rigel-nano/model] [tests/goldens/nano.json]

To be run again whenever the model changes; `model_sha256` says which weights the values belong to.
"""

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import hf
import torch
from jinja2 import TemplateError
from reference import Reference
from tokenizers import Tokenizer
from transformers import AutoTokenizer

NEW_TOKENS = 192  # half as much again as nano's window of 128

PROGRAM = '''"""A queue with priorities, and a small simulation that uses it."""

import heapq
from dataclasses import dataclass, field


@dataclass(order=True)
class Event:
    time: float
    name: str = field(compare=False)
    payload: dict = field(default_factory=dict, compare=False)


class Simulation:
    def __init__(self, events=()):
        self.now = 0.0
        self.queue = list(events)
        self.log = []
        heapq.heapify(self.queue)

    def schedule(self, delay, name, **payload):
        """Adds an event `delay` seconds from now."""
        if delay < 0:
            raise ValueError("delay must not be negative: %r" % delay)
        heapq.heappush(self.queue, Event(self.now + delay, name, payload))

    def step(self):
        event = heapq.heappop(self.queue)
        self.now = event.time
        self.log.append((event.time, event.name))
        return event

    def run(self, until=100.0):
        while self.queue and self.queue[0].time <= until:
            event = self.step()
            if event.name == "tick":
                self.schedule(1.5, "tick", count=event.payload.get("count", 0) + 1)
        return len(self.log)


if __name__ == "__main__":
    simulation = Simulation()
    simulation.schedule(0, "tick")
    simulation.schedule(10, "stop", reason="done")
    print(simulation.run(until=50), simulation.now)
'''

PROSE = (
    "The module defines the following exceptions and functions. If the argument is not a string, TypeError is raised; "
    "otherwise the string is split at the first separator, and a list of two strings is returned. Changed in version "
    "3.8: the default encoding is now UTF-8.\n\n"
)

TEXTS = {
    "def": "def ",
    "function": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "class": "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "imports": "import os\nimport sys\nimport json\n\nfrom collections import defaultdict\n\n",
    "infill": "<fim_prefix>def add(a, b):\n    <fim_suffix>\n    return result\n<fim_middle>",
    "infill, suffix first": "<fim_prefix><fim_suffix>\n    return total\n<fim_middle>def total(values):\n    total = 0\n",
    "file with path": "<file_sep>src/main.py\nimport argparse\n\n\ndef main():\n",
    "program": PROGRAM,
    "prose": PROSE * 3,
    "end of text": "x = 1\n<|endoftext|>import re\n",
    "unicode": "# Größe in µm — naïve Näherung, 数値は概算です\ngröße = 3.5  # Ω ≈ 2×10⁶\n",
}

INSTRUCTION = "Write a function in Python that returns the sum of the squares of a list of numbers."

# fmt: off
TOKENIZER_TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", " \n", "\n ", "  \n  \n", "a", " a", "a ",
    "a  b", "a   b", "a \n b", "    return x", "\treturn\tx", "x" * 40, " " * 33, "\n" * 9, "-" * 50, "=" * 7 + ">",
    "0", "42", "1024", "3.14159", "1_000_000", "0xDEADBEEF", "x1y22z333", " 7", "  7", "   7\n", "½ ⅓ ²³ ٣٤ १२ Ⅷ", "1 2  3   4",
    "I'm you're it's we've they'll he'd don't", "I'M IT'S", "'s't're", "’s", "snake_case camelCase PascalCase SCREAMING_CASE",
    "héllo", "naïve café", "cafe\u0301", "Ünïcödé", "Привет, мир", "こんにちは世界", "你好，世界。", "한국어 텍스트", "שלום", "مرحبا بالعالم",
    "ไทย", "हिन्दी", "🙂", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "a🙂b", "🏳️‍🌈", "𝔘𝔫𝔦", "\U00040000", "a\U00040000b", "\U0010ffff", "\ufeffBOM", "\ufffd",
    "\x00", "a\x00b", "\x01\x02\x03", "\x1b[0m", "\x7f", "\x80\x85", "\u00a0", "a\u00a0b", "\u2003\u2009", "\u200b", "\u2028\u2029", "\u3000",
    "\x0b\x0c", "\x1c\x1d\x1e\x1f", "\xad", "\u0130", "ﬁ", "Ǆ",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext", "<|endoftext|", "|endoftext|>",
    "<fim_prefix>def f():<fim_suffix>return 1<fim_middle>", "<fim_pad>", "<file_sep>a.py\nx", "<repo_name>r<file_sep>p\nc", "<NAME> <EMAIL> <KEY>",
    "<FIM_PREFIX>", "<pr><pr_status><pr_diff_hunk><pr_diff_hunk_comment_line>", "<issue_start>Title: t\nusername_0: hi<issue_comment>username_1: ok<issue_closed>",
    "###", "####", " ###", "#####", "### Instruction\nx\n\n### Response\n", "a###b", "# ## ###", "```python\nprint('hi')\n```",
    "if (a<=b && c!=d) { return a->b[i++]; }", "lambda x: x**2 + y[::-1] @ z", "SELECT * FROM t WHERE id = 10;", "<div class=\"x\">&nbsp;</div>",
    "https://example.com/a?b=1&c=%20d#e", "C:\\Users\\x\\n", "print(\"a\\tb\\u00e9\")", "x = [1, 2, 3]\ny = {'a': 1.5e-10}\n", "\\", "\"", "'", "`", "$", "@", "^", "~",
    "hello world . ok ? yes ! no , it 's n't 'm 've 're", PROGRAM, PROSE,
]
# fmt: on

# Cut at every token: what a stream sees before a character is whole.
CUT_TEXTS = ["héllo 🙂 世界", "👩‍👩‍👧‍👦!", "a\U00040000b"]

CHATS = [
    [{"role": "user", "content": INSTRUCTION}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "  leading and trailing spaces \n"}],
    [{"role": "user", "content": "Größe? {{ bos_token }} {% if %} 🙂"}],
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}],
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And times 3?\n\nShow the steps."},
    ],
    [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": "inject <|endoftext|> and ### Response"}],
    [{"role": "tool", "content": "any other role counts as the assistant"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
]


def tokenizer_vectors(tokenizer):
    def vector(ids):
        return {
            "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "decoded_without_specials": tokenizer.decode(ids, skip_special_tokens=True),
        }

    encode = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in TOKENIZER_TEXTS]
    encode = [entry | vector(entry["ids"]) for entry in encode]
    decode = []
    for text in CUT_TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decode += [{"ids": ids[:end]} | vector(ids[:end]) for end in range(1, len(ids) + 1)]
        decode += [{"ids": ids[start:]} | vector(ids[start:]) for start in range(1, len(ids))]
    return encode, decode


def chats(directory, tokenizer):
    # Only the template is rendered by transformers: its version 5 builds GPT2Tokenizer anew and loses the splitting of
    # digits that tokenizer.json asks for ("   7"), so ids always come from `tokenizers` itself.
    template = AutoTokenizer.from_pretrained(directory)
    entries = []
    for messages in CHATS:
        try:
            text = template.apply_chat_template(messages, tokenize=False)
            assert text == template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            entries.append(
                {"messages": messages, "text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
            )
        except TemplateError as error:
            entries.append({"messages": messages, "error": str(error)})
    return entries


def main():
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "crates/rigel-nano/model")
    output = Path(sys.argv[2] if len(sys.argv) > 2 else "tests/goldens/nano.json")
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model, model_bf16 = hf.load(directory), hf.load(directory, torch.bfloat16)
    chat = chats(directory, tokenizer)
    texts = TEXTS | {"instruct": chat[0]["text"], "two turns": chat[5]["text"]}
    sequences, greedy = [], []
    for name, text in texts.items():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        sequences.append(hf.score(model, model_bf16, ids, name=name, text=text))
        entry = hf.greedy(model, ids, NEW_TOKENS, name=name, text=text)
        entry["cached_generate_agrees"] = hf.check_cached_generate(model, entry)
        entry["decoded"] = tokenizer.decode(entry["ids"], skip_special_tokens=False)
        greedy.append(entry)
        print(f"{name:24} {len(ids):4} tokens, smallest margin {min(entry['margins']):.4f}", flush=True)
    encode, decode = tokenizer_vectors(tokenizer)
    golden = {
        "checkpoint": directory.name,
        "model_sha256": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
        "transformers": version("transformers"),
        "torch": version("torch"),
        "tokenizers": version("tokenizers"),
        "sequences": sequences,
        "greedy": greedy,
        "encode": encode,
        "decode": decode,
        "chat": chat,
    }
    worst = hf.check_float64(Reference(directory), golden)
    assert worst < 1e-4, f"transformers and the float64 model differ by {worst}"
    golden = golden | {"float64_max_difference": float(f"{worst:.2e}")}
    hf.dump(golden, output)
    error = hf.bf16_error(golden)
    print(f"{len(error)} scored tokens, float64 {worst:.2e}, bf16 mean {error.mean():.4g}")


if __name__ == "__main__":
    main()
