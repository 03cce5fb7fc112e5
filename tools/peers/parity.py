"""How far Rigel in half precision is from transformers in float32, beside how far transformers in half precision is.

    python3 tools/peers/parity.py --rigel target/release/rigel --config models/configs/starcoder2-3b.json
    python3 tools/peers/parity.py --rigel target/release/rigel --model DIR --tokens 700,700,700

A checkpoint of random weights is written where --config names a shape (those of the shared generator, in bfloat16), and
random tokens are scored by the three. Accepted are a mean |Δ log-probability| of at most 1.0 times and a 99th percentile
of at most 1.25 times those of transformers in half precision, over all scored tokens. Exit code 0: accepted, 1: not, 2: it
could not be measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kernels
import report
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

MEAN, P99 = 1.0, 1.25
MIN_TOKENS = 2000
# Odd lengths, and one that goes beyond the window of the published models.
TOKENS = (1, 37, 513, 1027, 4609)


class Unmeasured(Exception):
    """Why there is no figure, in one line."""


@torch.no_grad()
def write_random(config, seed, directory, device):
    """A checkpoint of this shape in bfloat16, by the shared generator and the tensors' names."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, tensor in model.named_parameters():
        kernels.fill_parameter(tensor, seed, name)
    model.save_pretrained(directory)


def sequences(lengths, vocabulary, seed):
    """Token ids, evenly drawn."""
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [(kernels.bits(seed, at, n, "cpu") % vocabulary).tolist() for at, n in zip(firsts, lengths)]


@torch.no_grad()
def scores_of_transformers(directory, dtype, ids, device):
    """Log-probabilities of every token but the first of each sequence, from one forward pass without a cache."""
    # Loading in half precision keeps RoPE's frequencies in float32; `.to(dtype)` afterwards would round them too.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().to(device)
    if model.model.rotary_emb.inv_freq.dtype != torch.float32:
        raise Unmeasured("this transformers rounds RoPE's frequencies; it is no reference")
    scores = []
    for sequence in ids:
        tokens = torch.tensor([sequence], device=device)
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, :-1]
        for part, targets in zip(hidden.split(512), tokens[0, 1:].split(512)):
            # Logits in the model's dtype, as a user gets them; their log-softmax in float32.
            table = model.lm_head(part).float().log_softmax(-1)
            scores += table.gather(1, targets[:, None])[:, 0].tolist()
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return scores


def scores_of_rigel(rigel, directory, ids, device, dtype):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"token_ids": sequence}) + "\n" for sequence in ids)
        file.flush()
        words = [rigel, "score", "--model", str(directory), "--token-ids", file.name, "--json", "--device", device]
        words += ["--dtype", dtype, "--context", str(max(map(len, ids)))] if device == "cuda" else []
        done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Unmeasured(f"rigel score ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if [record["token_ids"] for record in found] != ids:
        raise Unmeasured("rigel score answered for other tokens than it was given")
    return [score for record in found for score in record["logprobs"][1:]]


def quantile(values, share):
    place = share * (len(values) - 1)
    ordered, below = sorted(values), int(place)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def compare(ours, half, exact):
    """What the row says: errors and their ratios."""
    if not len(ours) == len(half) == len(exact):
        raise Unmeasured(f"{len(ours)}, {len(half)} and {len(exact)} scores of the same tokens")
    if any(score is None or score != score for score in ours):
        raise Unmeasured("rigel score gave a token no number")
    ours, half = ([abs(a - b) for a, b in zip(scores, exact)] for scores in (ours, half))
    mean = lambda errors: sum(errors) / len(errors)
    values = {
        "tokens": len(exact),
        "mean_error": mean(ours),
        "p99_error": quantile(ours, 0.99),
        "mean_error_of_transformers": mean(half),
        "p99_error_of_transformers": quantile(half, 0.99),
    }
    values["mean_ratio"] = values["mean_error"] / values["mean_error_of_transformers"]
    values["p99_ratio"] = values["p99_error"] / values["p99_error_of_transformers"]
    values["passed"] = float(values["mean_ratio"] <= MEAN and values["p99_ratio"] <= P99)
    return values


def measure(options, directory, name):
    config = AutoConfig.from_pretrained(directory)
    lengths = [min(n, config.max_position_embeddings) for n in options.tokens]
    ids = sequences(lengths, config.vocab_size, options.seed)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[options.dtype]
    exact = scores_of_transformers(directory, torch.float32, ids, options.device)
    half = scores_of_transformers(directory, dtype, ids, options.device)
    ours = scores_of_rigel(options.rigel, directory, ids, options.device, options.dtype)
    values = compare(ours, half, exact)
    marks = [] if values["tokens"] >= MIN_TOKENS else [f"fewer than {MIN_TOKENS} tokens: no acceptance"]
    shape = {"dtype": options.dtype, "sequences": len(ids), "tokens": values["tokens"]}
    if config.num_hidden_layers != options.whole_layers:
        shape["layers"] = config.num_hidden_layers
    how = f"transformers {__import__('transformers').__version__}, torch {torch.__version__}"
    return report.row("parity", "logprobs", "rigel", model=name, shape=shape, path=how, values=values, marks=marks)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rigel", required=True, help="the rigel program")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="checkpoint directory")
    source.add_argument("--config", type=Path, help="config.json of a checkpoint to make")
    parser.add_argument("--layers", type=int, help="with --config, as many layers and no more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), help="lengths of the sequences [%(default)s]")
    parser.add_argument("--dtype", choices=["bf16", "f16"], default="bf16", help="of the half precision [%(default)s]")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scratch", help="where the checkpoint is written [the system's folder for that]")
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    try:
        options.tokens = [int(word) for word in options.tokens.split(",")]
        if min(options.tokens) < 1 or max(options.tokens) < 2:
            raise ValueError
    except ValueError:
        parser.error("--tokens: expected whole numbers of at least 1 between commas, one of them 2 or more")
    return options


def main():
    options = parse()
    if options.model and not options.model.is_dir():
        raise Unmeasured(f"--model {options.model}: no such directory")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = report.cuda_device() if options.device == "cuda" else report.cpu_device()
    result = report.begin(device)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        directory, name, options.whole_layers = options.model, "", None
        if options.config:
            # The library reads a folder; a config may have any file name.
            Path(scratch, "config.json").write_text(options.config.read_text())
            config = AutoConfig.from_pretrained(scratch)
            options.whole_layers = config.num_hidden_layers
            config.num_hidden_layers = options.layers or config.num_hidden_layers
            directory, name = Path(scratch, "checkpoint"), options.config.stem
            write_random(config, options.seed, directory, options.device)
        else:
            name = options.model.resolve().name
            options.whole_layers = AutoConfig.from_pretrained(directory).num_hidden_layers
        row = measure(options, directory, name)
    result["rows"].append(row)
    if options.json:
        report.write(result, options.json)
    values = row["values"]
    print(
        f"{name}: {values['tokens']} tokens, mean {values['mean_error']:.4f} of"
        f" {values['mean_error_of_transformers']:.4f} ({values['mean_ratio']:.2f}), 99th percentile"
        f" {values['p99_error']:.4f} of {values['p99_error_of_transformers']:.4f} ({values['p99_ratio']:.2f}):"
        f" {'accepted' if values['passed'] else 'NOT ACCEPTED'}"
    )
    return 0 if values["passed"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Unmeasured, report.NoDriver, OSError, torch.cuda.OutOfMemoryError) as error:
        print(f"parity: {kernels.one_line(error)}", file=sys.stderr)
        sys.exit(2)
