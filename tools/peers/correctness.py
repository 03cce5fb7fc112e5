"""Log-probabilities of Rigel, llama.cpp, candle, mistral.rs and transformers beside transformers in float32.

    python3 tools/peers/correctness.py --rigel target/release/rigel

Two random StarCoder2 checkpoints are written, one with a tied and one with an untied head, and each program scores the
same token ids. It prints the tables of docs/correctness.md. llama.cpp, candle and mistral.rs are installed once, from
PyPI and crates.io, in a folder of their own; one that cannot be is named with the reason. Python needs the packages of
tools/goldens/requirements.txt.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parent), str(ROOT / "tools/goldens")]
import checkpoints
import llama_cpp

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers
from transformers import AutoModelForCausalLM

CANDLE, MISTRALRS = "0.11.1", "0.9.5"
WINDOW = 128
# Prompts and how many there are. One more id than a prompt has is scored, so that its last position counts: that of
# W + 1 is the first that does not see the whole prompt.
PROMPTS = {"W/2": (WINDOW // 2, 4), "W": (WINDOW, 4), "W + 1": (WINDOW + 1, 4), "4 W": (4 * WINDOW, 1)}
LONGEST = max(tokens for tokens, _ in PROMPTS.values())
# The models are small: a second thread would only wait, above all where other work runs.
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# "prompt": all tokens at once, as a prompt is processed. "tokens": one after the other, as an answer is generated.
MODES = ("prompt", "tokens")

# What makes a program differ, by what was found in its source. Built into the reference, the difference must go away.
CAUSES = {
    ("llama.cpp", "prompt"): {"window": None, "gelu": "f16"},
    ("llama.cpp", "tokens"): {"window": None, "gelu": "f16"},
    ("candle", "prompt"): {"window": WINDOW + 1, "head": "tied"},
    ("candle", "tokens"): {"window": None, "head": "tied"},
}
WORDS = {
    "window": {None: "no window", WINDOW + 1: "window of W + 1"},
    "head": {"tied": "tied head"},
    "gelu": {"f16": "GELU in f16"},
}


class Unavailable(Exception):
    """Why a program cannot be compared, in one line."""


def write_checkpoint(head, seed, directory):
    """Weights that bf16 holds exactly, stored in float32: every program computes with the same ones."""
    spec = checkpoints.Checkpoint(
        directory.name, 4, 2, 64, 256, 1024, 512, WINDOW, "float32", 100000.0, layers=3, head=head
    )
    directory.mkdir(parents=True, exist_ok=True)
    weights = checkpoints.weights(spec, numpy.random.default_rng(seed))
    weights = {name: tensor.bfloat16().float().contiguous() for name, tensor in weights.items()}
    (directory / "model.f32.gguf").unlink(missing_ok=True)  # of other weights, it may be
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(checkpoints.published_config(spec), indent=2) + "\n")
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer(spec.vocabulary)))
    template = "{{ messages[0]['content'] }}"
    special = {"eos_token": "<0>", "bos_token": "<0>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(special) + "\n")


def tokenizer(vocabulary):
    """For mistral.rs, which is asked in text: id 17 is written <17>, so that text and ids are the same thing."""
    names = [f"<{i}>" for i in range(vocabulary)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(names)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
    }


def sequences(vocabulary):
    """Ids of every prompt and its next token, in the order of PROMPTS; never 0, the end of a text."""
    random = numpy.random.default_rng(15)
    return [random.integers(1, vocabulary, n + 1).tolist() for n, count in PROMPTS.values() for _ in range(count)]


class GeluInF16(torch.nn.Module):
    """ggml's: a table of f16 values at f16 places."""

    def forward(self, x):
        near = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, near))


@torch.no_grad()
def transformers_scores(directory, ids, mode="prompt", dtype=torch.float32, window=WINDOW, head="own", gelu="exact"):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, sliding_window=window).eval()
    if model.config.sliding_window != window:
        raise Unavailable(f"this transformers keeps a window of {model.config.sliding_window}")
    if head == "tied":
        model.lm_head.weight = model.model.embed_tokens.weight
    if gelu == "f16":
        for layer in model.model.layers:
            layer.mlp.act = GeluInF16()
    scores = []
    for sequence in ids:
        tokens = torch.tensor([sequence])
        if mode == "prompt":
            logits = model(tokens[:, :-1], use_cache=False).logits[0]
        else:
            rows, cache = [], None
            for i in range(len(sequence) - 1):
                out = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
                rows, cache = [*rows, out.logits[0]], out.past_key_values
            logits = torch.cat(rows)
        scores.append(logits.double().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].tolist())
    return scores


def output(words, **options):
    options |= {"capture_output": True, "text": True, "env": os.environ | ONE_THREAD}
    done = subprocess.run([str(word) for word in words], **options)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"ended with {done.returncode}"]
        wrong = next((line for line in lines if "rror" in line.split(":")[0]), lines[-1])
        raise Unavailable(f"{Path(words[0]).name}: {wrong.strip()}")
    return done.stdout


def rust_peer(source, dependencies, folder):
    """A program of its own that no workspace knows, built from one source file."""
    (folder / "src").mkdir(parents=True, exist_ok=True)
    lines = ["[workspace]", '[package]\nname = "peer"\nversion = "0.0.0"\nedition = "2024"', "[dependencies]"]
    (folder / "Cargo.toml").write_text("\n".join([*lines, *dependencies]) + "\n")
    text, target = source.read_text(), folder / "src/main.rs"
    if not target.exists() or target.read_text() != text:
        target.write_text(text)
    print(f"correctness: building {source.stem} in {folder} (once, minutes)", file=sys.stderr)
    output(["cargo", "build", "--release", "--quiet"], cwd=folder)
    return folder / "target/release/peer"


def last_line(text):
    """The result. Some programs print reports of their own before it."""
    return json.loads(text.strip().splitlines()[-1])


class Peers:
    """How each program is asked. A method returns what scores a checkpoint's sequences in one of the modes."""

    def __init__(self, options):
        self.options = options
        self.file = options.work / "sequences.json"
        self.notes = []

    def rigel(self):
        lines = [json.dumps({"token_ids": ids}) for ids in json.loads(self.file.read_text())]

        def scores(directory, mode):
            words = [self.options.rigel, "score", "--model", directory, "--token-ids", "-", "--json"]
            words += ["--device", "cpu", "--threads", "1"]
            words += ["--prefill-chunk", "1" if mode == "tokens" else str(LONGEST + 1)]
            found = output(words, input="\n".join(lines))
            return [json.loads(line)["logprobs"][1:] for line in found.splitlines()]

        return scores

    def llama_cpp(self):
        environment = self.options.work / "llama-cpp"
        script = HERE.with_name("llama_cpp.py")
        try:
            llama_cpp.environment(environment)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{error.cmd[0]} ended with {error.returncode}") from error

        def scores(directory, mode):
            words = [sys.executable, script, "--venv", environment, "--model", directory, "--score", self.file]
            words += ["--threads", "1"]
            words += ["--gguf", directory / "model.f32.gguf", "--chunk", "1" if mode == "tokens" else "512"]
            return last_line(output(words))

        return scores

    def candle(self):
        crates = [f'{name} = "={CANDLE}"' for name in ("candle-core", "candle-nn", "candle-transformers")]
        return self.rust("candle.rs", [*crates, 'serde_json = "1"'])

    def mistralrs(self):
        folder = self.options.work / "mistralrs"
        python = folder / "bin/python"
        if not (folder / "ready").exists():
            output([sys.executable, "-m", "venv", folder])
            output([python, "-m", "pip", "install", "--quiet", f"mistralrs=={MISTRALRS}"])
            (folder / "ready").write_text("")

        def scores(directory, mode):
            words = [python, HERE.with_name("mistral_rs.py"), directory, self.file, mode]
            try:
                return last_line(output(words))
            except Unavailable as error:
                config = json.loads((directory / "config.json").read_text())
                if "lm_head" not in str(error) or "tie_word_embeddings" in config:
                    raise
                self.notes.append(f"mistral.rs, config.json without tie_word_embeddings: {error}")
            # It takes an absent key for false. So that the rest can be compared it gets the key.
            said = directory.with_name(directory.name + "-said")
            said.mkdir(exist_ok=True)
            for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                (said / file).write_bytes((directory / file).read_bytes())
            (said / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
            words[2] = said
            return last_line(output(words))

        return scores

    def rust(self, name, dependencies):
        program = rust_peer(HERE.with_name(name), dependencies, self.options.work / Path(name).stem)
        return lambda directory, mode: last_line(output([program, directory, self.file, mode]))


def cells(scores, exact):
    """Max and mean |Δ log-probability| of each length's sequences; null is a token that was not scored."""
    found = []
    first = 0
    for _, count in PROMPTS.values():
        part = slice(first, first + count)
        first += count
        if [len(row) for row in scores[part]] != [len(row) for row in exact[part]]:
            raise Unavailable("it scored another number of tokens")
        pairs = zip(numpy.concatenate(scores[part]).tolist(), numpy.concatenate(exact[part]).tolist())
        errors = numpy.abs([a - b for a, b in pairs if a is not None])
        found.append(f"{errors.max():.1e} / {errors.mean():.1e}".replace("e-0", "e-").replace("e+00", ""))
    return found


def row(*words):
    print("| " + " | ".join(words) + " |", flush=True)


def report(name, mode, head, directory, ids, scored, exact):
    """The table's row, and one beside the reference with this program's causes built in."""
    if isinstance(scored, dict):
        ids, scored, exact = scored["ids"], scored["logprobs"], transformers_scores(directory, scored["ids"])
    row(name, mode, head, "as it is", *cells(scored, exact))
    causes = CAUSES.get((name, mode), {})
    causes = {key: value for key, value in causes.items() if (key, head) != ("head", "tied")}
    if causes:
        words = ", ".join(WORDS[key][value] for key, value in causes.items())
        row(name, mode, head, words, *cells(scored, transformers_scores(directory, ids, **causes)))


def compare(options):
    heads = {"tied": "absent", "untied": "untied"}
    directories = {name: options.work / "checkpoints" / name for name in heads}
    for seed, (name, head) in enumerate(heads.items()):
        write_checkpoint(head, 150 + seed, directories[name])
    ids = sequences(512)
    peers = Peers(options)
    peers.file.write_text(json.dumps(ids))
    exact = {name: transformers_scores(directory, ids) for name, directory in directories.items()}

    programs = {
        "Rigel": peers.rigel,
        "llama.cpp": peers.llama_cpp,
        "candle": peers.candle,
        "mistral.rs": peers.mistralrs,
        "transformers f32": lambda: lambda directory, mode: transformers_scores(directory, ids, mode),
        "transformers bf16": lambda: lambda directory, mode: transformers_scores(directory, ids, mode, torch.bfloat16),
    }
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    row("program", "mode", "head", "beside the reference", *PROMPTS)
    row(*["---"] * (4 + len(PROMPTS)))
    for name in [name for name in programs if not options.only or name in options.only]:
        try:
            scores = programs[name]()
        except (Unavailable, OSError) as error:
            peers.notes.append(f"{name}: not compared: {error}")
            continue
        for head, directory in directories.items():
            # Of the reference itself only the way through its cache is a row.
            for mode in MODES[1:] if name == "transformers f32" else MODES:
                try:
                    report(name, mode, head, directory, ids, scores(directory, mode), exact[head])
                except (Unavailable, OSError) as error:
                    peers.notes.append(f"{name}, {mode}, {head} head: not compared: {error}")
    for note in dict.fromkeys(peers.notes):
        print("\n" + note)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--rigel", required=True, help="the rigel program")
    add("--work", type=Path, default=ROOT / "target/peers", help="where checkpoints and programs go [%(default)s]")
    add("--only", action="append", help="a program of the table; may be given again [all]")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    compare(options)


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(f"correctness: {error}")
