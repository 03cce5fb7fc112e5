"""How much of what the model writes stands in its training data."""

import re

import data

CONTINUATIONS, CONTEXT, LENGTH = 200, 128, 50  # tokens


def level(text):
    """The text without its indentation, since training dedents functions."""
    return re.sub(r"\n[ ]+", "\n", text)


class Training:
    """All training files as one string, to be searched."""

    def __init__(self, corpus):
        train, _ = data.read_library()
        groups = {"library": train, **data.read_packages(corpus)}
        self.text = level("\n\x00\n".join(text for files in groups.values() for text in files.values()))

    def has(self, text):
        return level(text).strip() in self.text


def share(model, held, training, rng):
    """Greedy continuations of `LENGTH` tokens after `CONTEXT` tokens of a held-out file, and the share of them whose
    whole text stands in a training file, indentation aside. One that ends earlier is not counted."""
    found = counted = 0
    files = [ids for ids in (model.encode(data.EOT + text) for text in held.values()) if len(ids) > CONTEXT + LENGTH]
    while counted < CONTINUATIONS:
        ids = rng.choices(files, [len(ids) for ids in files])[0]
        start = rng.randrange(len(ids) - CONTEXT - LENGTH)
        text, ended = model.greedy_ids(ids[start : start + CONTEXT], LENGTH, (0, model.id(data.FILE_SEP)))
        if not ended:
            counted += 1
            found += training.has(text)
    return {"continuations": counted, "context_tokens": CONTEXT, "tokens": LENGTH, "verbatim": found / counted}
