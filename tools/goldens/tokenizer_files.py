"""Writes tests/goldens/tokenizer_files.json: what transformers makes of a tokenizer's files, tokenizer.json or not.

    python tools/goldens/tokenizer_files.py [tests/goldens/tokenizer_files.json]

Needs requirements.txt without torch. Each case is a directory's files, and the ids that AutoTokenizer gives some texts.
The tokenizer is made here: the ASCII characters of GPT-2's alphabet and a few merges.
"""

import copy
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer

SPECIALS = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<file_sep>"]
MERGES = [("Ġ", "Ġ"), ("r", "e"), ("re", "t"), ("Ġ", "a"), ("1", "2"), ("i", "n")]
CHARACTERS = [chr(c) for c in range(0x21, 0x7F)] + ["Ġ", "Ċ", "ĉ"]
VOCAB = {token: i for i, token in enumerate(SPECIALS + CHARACTERS + [a + b for a, b in MERGES])}
NEXT = len(VOCAB)

TEXTS = [
    "",
    "ret a  12",
    " in\nret",
    "a<|endoftext|>b",
    "a <x> b",
    "a <x>b <y> c",
    "a<x>a a<y>a",
    "a <file_sep> b",
    "<z> <file_sep><fim_prefix>",
    "ret[PAD]ret",
    "a    b",
]


def added(content, special=True, **flags):
    token = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return token | {"special": special} | flags


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": i} | added(token) for i, token in enumerate(SPECIALS)],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    },
    "post_processor": None,
    "decoder": BYTE_LEVEL | {"add_prefix_space": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": VOCAB,
        "merges": MERGES,
    },
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
MERGES_TXT = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES)
FILES = {"tokenizer.json": TOKENIZER, "tokenizer_config.json": FAST, "vocab.json": VOCAB, "merges.txt": MERGES_TXT}


def template(single):
    ids = {token: {"id": token, "ids": [VOCAB[token]], "tokens": [token]} for token in single if token != "$A"}
    piece = lambda t: {"Sequence": {"id": "A", "type_id": 0}} if t == "$A" else {"SpecialToken": {"id": t, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [piece(token) for token in single],
        "pair": [piece("$A"), {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": ids,
    }


# Each changes files of FILES: null is no such file, tokenizer.json has the fields that differ.
CASES = {
    "tokenizer.json alone": {},
    "added_tokens_decoder: new tokens": {
        "tokenizer_config.json": FAST
        | {
            "added_tokens_decoder": {
                str(NEXT): added("<x>", lstrip=True),
                str(NEXT + 1): added("<y>", rstrip=True, special=False),
                str(NEXT + 2): added("[PAD]", single_word=True),
            }
        }
    },
    "added_tokens_decoder: other flags": {
        "tokenizer_config.json": FAST
        | {"added_tokens_decoder": {"4": added("<file_sep>", lstrip=True, rstrip=True), "1": added("<fim_prefix>", special=False)}}
    },
    "added_tokens_decoder: a token of the vocabulary": {
        "tokenizer_config.json": FAST | {"added_tokens_decoder": {str(VOCAB["ret"]): added("ret", single_word=True)}}
    },
    "added_tokens_decoder: defaults of flags": {
        "tokenizer_config.json": FAST | {"added_tokens_decoder": {str(NEXT): {"content": "<x>"}, str(NEXT + 1): {"content": "<y>", "special": True}}}
    },
    "added_tokens_decoder: named tokens become special": {
        "tokenizer_config.json": FAST
        | {
            "eos_token": "<x>",
            "additional_special_tokens": ["<y>"],
            "added_tokens_decoder": {str(NEXT): added("<x>", special=False), str(NEXT + 1): added("<y>", special=False)},
        }
    },
    "named tokens that tokenizer.json lacks": {
        "tokenizer_config.json": FAST | {"pad_token": "[PAD]", "bos_token": "<z>", "additional_special_tokens": ["<x>", "<|endoftext|>"]}
    },
    "named tokens with flags": {
        "tokenizer_config.json": FAST
        | {"pad_token": {"__type": "AddedToken"} | added("<x>", lstrip=True), "unk_token": {"__type": "AddedToken"} | added("<y>", rstrip=True)}
    },
    "a named token of the vocabulary": {"tokenizer_config.json": FAST | {"pad_token": "ret"}},
    "extra_special_tokens: a list": {"tokenizer_config.json": FAST | {"extra_special_tokens": ["<x>", "<y>"]}},
    "extra_special_tokens: an object": {"tokenizer_config.json": FAST | {"extra_special_tokens": {"z_token": "<x>"}}},
    "a token of the model's own": {"tokenizer_config.json": FAST | {"image_token": "<x>", "additional_special_tokens": ["<y>"]}},
    "special_tokens_map.json": {
        "tokenizer_config.json": FAST | {"bos_token": "<fim_prefix>"},
        "special_tokens_map.json": {"bos_token": "<fim_suffix>", "pad_token": added("<x>", lstrip=True), "additional_special_tokens": ["<y>"]},
    },
    "special_tokens_map.json beside added_tokens_decoder": {
        "tokenizer_config.json": FAST | {"bos_token": "<fim_prefix>", "added_tokens_decoder": {"0": added("<|endoftext|>")}},
        "special_tokens_map.json": {"bos_token": "<fim_suffix>", "pad_token": "<x>"},
    },
    "added_tokens.json": {
        "tokenizer_config.json": FAST | {"pad_token": "<x>"},
        "added_tokens.json": {"<y>": NEXT + 1, "<x>": NEXT, "<file_sep>": 4},
    },
    "added_tokens.json beside added_tokens_decoder": {
        "tokenizer_config.json": FAST | {"added_tokens_decoder": {"0": added("<|endoftext|>")}},
        "added_tokens.json": {"<y>": NEXT},
    },
    "add_prefix_space over tokenizer.json": {
        "tokenizer.json": {"pre_tokenizer": BYTE_LEVEL},
        "tokenizer_config.json": FAST | {"add_prefix_space": True},
    },
    "split_special_tokens": {"tokenizer_config.json": FAST | {"split_special_tokens": True}},
    "a template with bos": {"tokenizer.json": {"post_processor": template(["<|endoftext|>", "$A"])}},
    "a template with bos and eos": {"tokenizer.json": {"post_processor": template(["<fim_prefix>", "$A", "<|endoftext|>"])}},
    "ByteLevel as post-processor": {"tokenizer.json": {"post_processor": BYTE_LEVEL}},
    "RobertaProcessing": {
        "tokenizer.json": {
            "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 0], "cls": ["<fim_prefix>", 1], "trim_offsets": True, "add_prefix_space": False}
        }
    },
    "BertProcessing": {"tokenizer.json": {"post_processor": {"type": "BertProcessing", "sep": ["<|endoftext|>", 0], "cls": ["<fim_prefix>", 1]}}},
    "a sequence of post-processors": {
        "tokenizer.json": {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, template(["<|endoftext|>", "$A"])]}}
    },
    "add_bos_token beside tokenizer.json": {"tokenizer_config.json": FAST | {"bos_token": "<|endoftext|>", "add_bos_token": True, "add_eos_token": True}},
    "vocab.json and merges.txt": {"tokenizer.json": None, "tokenizer_config.json": GPT2},
    "vocab.json and merges.txt: no tokenizer_config.json": {
        "tokenizer.json": None,
        "tokenizer_config.json": None,
        "config.json": {"model_type": "starcoder2"},
    },
    "vocab.json and merges.txt: add_prefix_space": {"tokenizer.json": None, "tokenizer_config.json": GPT2 | {"add_prefix_space": True}},
    "vocab.json and merges.txt: add_bos_token": {
        "tokenizer.json": None,
        "tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": True, "bos_token": "<fim_prefix>"},
    },
    "vocab.json and merges.txt: add_eos_token": {"tokenizer.json": None, "tokenizer_config.json": GPT2 | {"add_eos_token": True}},
    "vocab.json and merges.txt: Windows line ends": {
        "tokenizer.json": None,
        "merges.txt": MERGES_TXT.replace("\n", "\r\n"),
        "tokenizer_config.json": GPT2,
    },
    "vocab.json and merges.txt: no header": {
        "tokenizer.json": None,
        "merges.txt": MERGES_TXT.split("\n", 1)[1],
        "tokenizer_config.json": GPT2,
    },
    "vocab.json and merges.txt: no last line end": {
        "tokenizer.json": None,
        "merges.txt": MERGES_TXT.rstrip("\n"),
        "tokenizer_config.json": GPT2,
    },
    "vocab.json and merges.txt: added tokens": {
        "tokenizer.json": None,
        "tokenizer_config.json": GPT2
        | {"pad_token": "[PAD]", "added_tokens_decoder": {"0": added("<|endoftext|>"), "4": added("<file_sep>"), str(NEXT): added("<x>", lstrip=True)}},
    },
    "vocab.json and merges.txt: Qwen2Tokenizer": {"tokenizer.json": None, "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"}},
    "GPT2Tokenizer's own special tokens": {"tokenizer.json": None, "tokenizer_config.json": GPT2 | {"eos_token": "<file_sep>", "bos_token": None}},
    "chat template: a string": {"tokenizer_config.json": FAST | {"chat_template": "string"}},
    "chat template: a list": {
        "tokenizer_config.json": FAST | {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}
    },
    "chat template: a list without default": {"tokenizer_config.json": FAST | {"chat_template": [{"name": "tool_use", "template": "T"}]}},
    "chat template: an object": {"tokenizer_config.json": FAST | {"chat_template": {"default": "{{ eos_token }}D", "rag": "R"}}},
    "chat template: an object without default": {"tokenizer_config.json": FAST | {"chat_template": {"rag": "R", "tool_use": "T"}}},
    "chat template: a file wins": {"tokenizer_config.json": FAST | {"chat_template": "string"}, "chat_template.jinja": "file"},
    "chat template: a file and more": {
        "tokenizer_config.json": FAST | {"chat_template": "string"},
        "chat_template.jinja": "file",
        "additional_chat_templates/rag.jinja": "R",
    },
    "chat template: a folder": {"tokenizer_config.json": FAST, "additional_chat_templates/default.jinja": "folder"},
    "chat template: a folder without default": {"tokenizer_config.json": FAST, "additional_chat_templates/rag.jinja": "R"},
    "chat template: special tokens": {
        "tokenizer_config.json": FAST | {"image_token": "<x>", "chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}|{{ image_token }}"}
    },
    "chat template: GPT2Tokenizer's special tokens": {
        "tokenizer_config.json": GPT2 | {"chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}"}
    },
}


def write(directory, files):
    for name, content in files.items():
        path = Path(directory, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())


def outcome(name, files):
    whole = copy.deepcopy(FILES | files)
    if files.get("tokenizer.json"):
        whole["tokenizer.json"] = TOKENIZER | files["tokenizer.json"]
    with tempfile.TemporaryDirectory() as directory:
        write(directory, {name: content for name, content in whole.items() if content is not None})
        t = AutoTokenizer.from_pretrained(directory)
    if "chat template" in name:
        return chat(t)
    named = {field: getattr(t, field + "_id") for field in ["bos_token", "eos_token", "pad_token"]}
    added_tokens = {i: token for i, token in t.added_tokens_decoder.items()}
    return {
        "named": named,
        # What decoding skips. A token that was special stays so, whatever a later flag says.
        "special": sorted(i for i in added_tokens if t.decode([i]) != "" and t.decode([i], skip_special_tokens=True) == ""),
        "added": {str(i): token.content for i, token in sorted(added_tokens.items())},
        "ids": [t(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "prompt_ids": [t(text)["input_ids"] for text in TEXTS],
    }


def chat(t):
    try:
        return {"chat": t.apply_chat_template([{"role": "user", "content": "u"}], tokenize=False)}
    except ValueError as error:
        return {"chat_error": str(error)}


def main():
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/goldens/tokenizer_files.json")
    cases = [{"name": name, "files": files, **outcome(name, files)} for name, files in CASES.items()]
    versions = {name: version(name) for name in ["transformers", "tokenizers"]}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps(versions | {"files": FILES, "texts": TEXTS}, ensure_ascii=False)
    path.write_text(head[:-1] + ', "cases": [\n' + lines + "\n]}\n")


main()
