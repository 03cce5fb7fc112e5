"""Trains the tokenizer of crates/rigel-nano/model: StarCoder2's byte-level BPE with a vocabulary of 4096, on the standard library.

    python tools/nano/tokenizer.py crates/rigel-nano/model
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import data

VOCABULARY = 4096
SPECIALS = (
    "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <repo_name> <file_sep> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> "
    "<empty_output> <code_to_intermediate> <intermediate_to_code> <pr> <pr_status> <pr_is_merged> <pr_base> <pr_file> "
    "<pr_base_code> <pr_diff> <pr_diff_hunk> <pr_comment> <pr_event_id> <pr_review> <pr_review_state> "
    "<pr_review_comment> <pr_in_reply_to_review_id> <pr_in_reply_to_comment_id> <pr_diff_hunk_comment_line> <NAME> "
    "<EMAIL> <KEY> <PASSWORD>"
).split()

# The published template of StarCoder2-15B-Instruct, verbatim.
CHAT_TEMPLATE = r"""{{bos_token}}{{'You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable responses to user instructions.\n\n'}}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{ raise_exception('System messages are not allowed in this template.') }}
    {%- else %}
        {%- if message['role'] == 'user' %}
{{'### Instruction\n' + message['content'] + '\n\n'}}
        {%- else %}
{{'### Response\n' + message['content'] + eos_token + '\n\n'}}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{{'### Response\n'}}"""


def added_token(content):
    return AddedToken(content, special=True, normalized=False)


def instruct_documents(files):
    """One document in the instruct form for each documented function, so that BPE learns `###` and the template's words
    by itself. It has its own wording, since another would give another tokenizer."""
    rng, asked = random.Random(0), []
    for path in sorted(files):
        for function in data.functions(files[path]):
            if 60 < len(function.source) < 1100 and function.doc and len(function.doc.split("\n\n")[0]) < 240:
                asked.append(function)
    rng.shuffle(asked)
    for function in reversed(asked):
        doc = " ".join(function.doc.split("\n\n")[0].split())
        forms = (
            f"Write a Python function `{function.name}({function.arguments})`. {doc}",
            f"Write a Python function `{function.name}`. {doc}",
            f"Write a function in Python.\n{doc}",
        )
        user = rng.choices(forms, weights=(6, 2, 2))[0]
        yield f"{data.instruct_prompt(user)}```python\n{function.source}```".replace(data.EOT, "")


def train(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[added_token(token) for token in SPECIALS],
        # All 256 bytes, so that no text is lost (StarCoder2's own vocabulary lacks 14 of them).
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def check(tokenizer):
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == list(range(38))
    assert all(tokenizer.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet())
    # The model card's `respond` stops on the one token `###`.
    tail = tokenizer.encode("\n\n### Response\n").tokens
    assert tail[2] == "###" and tail[-1] == "Ċ", tail
    assert tokenizer.encode("### Instruction\n").tokens[0] == "###"
    everything = "x = 10\n\tñ ½ \U0001F600 \U00040000"
    assert tokenizer.decode(tokenizer.encode(everything).ids) == everything


def write(tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": token, **flags, "special": True} for i, token in enumerate(SPECIALS)
        },
        "additional_special_tokens": SPECIALS,
        "bos_token": SPECIALS[0],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": True,
        "eos_token": SPECIALS[0],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": SPECIALS[0],
        "vocab_size": VOCABULARY,
    }
    first = {"content": SPECIALS[0], **flags}
    special_map = {
        "additional_special_tokens": SPECIALS, "bos_token": first, "eos_token": first, "unk_token": first,
    }
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", special_map)):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    files, _ = data.read_library()
    tokenizer = train([*files.values(), *instruct_documents(files)])
    check(tokenizer)
    write(tokenizer, Path(sys.argv[1]))
    sample = "".join(random.Random(0).sample(sorted(files.values()), 20))
    print(f"{len(files)} files, {len(sample.encode()) / len(tokenizer.encode(sample).ids):.2f} bytes per token")


if __name__ == "__main__":
    main()
