"""transformers' StarCoder2 as a peer of `rigel bench model`: `generate` with a static cache, on random weights.

    python3 tools/peers/generate.py --config models/configs/starcoder2-15b.json -b 1,8,64 --json out.json

Weights are those of the shared generator, as `rigel bench model --dummy-weights` has them. `generate` compiles its
decode step where it can; where that fails the row says so and is of the step as it stands. Rows are named as llama-bench
names them: pp512 is a prompt of 512 tokens, tg128 @ d4096 are 128 tokens after 4096. Every row is written as it comes.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kernels
import report
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import tempfile

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class Clock(LogitsProcessor):
    """Notes the time after each forward pass: `generate` hands every pass's logits through it."""

    def __init__(self, cuda):
        self.cuda = cuda
        self.marks = []
        self.mark()

    def mark(self):
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def __call__(self, input_ids, scores):
        self.mark()
        return scores

    def us(self, first, last):
        if not self.cuda:
            return (self.marks[last] - self.marks[first]) * 1e6
        torch.cuda.synchronize()
        return self.marks[first].elapsed_time(self.marks[last]) * 1e3


@torch.no_grad()
def build(options):
    with tempfile.TemporaryDirectory() as folder:  # the library reads a folder; a config may have any file name
        Path(folder, "config.json").write_text(options.config.read_text())
        config = AutoConfig.from_pretrained(folder)
    if options.layers:
        config.num_hidden_layers = options.layers
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[options.dtype]).eval()
    for name, tensor in model.named_parameters():
        kernels.fill_parameter(tensor, options.seed, name)
    return model


@torch.no_grad()
def run(model, options, batch, prompt, new, compiled):
    """One call of `generate`: the times of the prompt and of the `new` tokens after the first, in microseconds."""
    tokens = kernels.bits(options.seed, 0, batch * prompt, options.device) % model.config.vocab_size
    clock = Clock(options.device == "cuda")
    ids = model.generate(
        tokens.view(batch, prompt),
        attention_mask=torch.ones(batch, prompt, dtype=torch.long, device=options.device),
        logits_processor=LogitsProcessorList([clock]),
        cache_implementation="static",
        disable_compile=not compiled,
        max_new_tokens=new + 1,
        min_new_tokens=new + 1,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    if ids.shape[1] != prompt + new + 1 or len(clock.marks) != new + 2:
        raise RuntimeError(f"generate made {ids.shape[1] - prompt} tokens in {len(clock.marks) - 1} passes")
    return clock.us(0, 1), clock.us(1, new + 1) if new else None


def free():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(model, options, batch, prompt, new):
    """Samples of prompt and continuation, and how they were made. Falls back once, and says so."""
    marks = []
    for compiled in (True, False):
        try:
            # A warm-up apart: it compiles. One repetition more of it, for graphs are recorded at the second.
            for _ in range(2 if compiled and options.device == "cuda" else 1):
                run(model, options, batch, prompt, new, compiled)
            samples = [run(model, options, batch, prompt, new, compiled) for _ in range(options.repetitions)]
        except torch.cuda.OutOfMemoryError:
            free()
            raise
        except Exception as error:
            if not compiled:
                raise
            marks.append("the compiled step failed: " + kernels.one_line(error))
            torch.compiler.reset()
            free()
        else:
            # generate compiles on a GPU alone, and remembers what it compiled.
            was = compiled and getattr(model, "_compiled_call", None) is not None
            path = f"generate, {options.dtype}, static cache, " + ("compiled step" if was else "step not compiled")
            return [list(of) for of in zip(*samples)], path, marks


def rows_of(model, options, batch, prompt, new):
    """Rows of one call: its prompt where that is a benchmark, and its continuation."""
    shape = {"batch": batch}
    if options.layers:
        shape["layers"] = options.layers
    wanted = []
    if prompt in options.prompts:
        wanted.append((f"pp{prompt}", 0, batch * prompt))
    if new:
        depth = f" @ d{prompt}" if prompt > 1 else ""
        wanted.append((f"tg{new}{depth}", 1, batch * new))
    try:
        samples, path, marks = measure(model, options, batch, prompt, new)
    except Exception as error:  # out of memory, most likely: the other shapes are still worth their time
        free()
        why = kernels.one_line(error)
        return [row(options, name, shape, missing=why) for name, _, _ in wanted]
    fields = lambda at: {"times": report.times(samples[at]), "path": path, "marks": marks or None}
    return [row(options, name, shape, tokens=tokens, **fields(at)) for name, at, tokens in wanted]


def row(options, name, shape, **fields):
    return report.row("model", name, "transformers", model=options.config.stem, shape=shape, **fields)


def numbers(text):
    values = [int(word) for word in text.split(",") if word]
    if any(value < 0 for value in values):
        raise ValueError
    return values


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--config", type=Path, required=True, help="config.json of the model")
    add("--layers", type=int, help="as many layers and no more, for a try")
    add("--seed", type=int, default=0)
    add("--dtype", choices=list(DTYPES), default="bf16")
    add("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("-p", "--prompts", type=numbers, default=[512, 4096], help="prompts to time [512,4096]")
    add("-n", "--new", type=int, default=128, help="tokens to generate [%(default)s]")
    add("-d", "--depths", type=numbers, default=[0, 4096], help="tokens before the generated ones [0,4096]")
    add("-b", "--batches", type=numbers, default=[1, 8, 64], help="[1,8,64]")
    add("-r", "--repetitions", type=int, default=3, help="[%(default)s]")
    add("--threads", type=int, help="of the CPU")
    add("--json", help="write the result there, row by row")
    return parser.parse_args()


def main():
    options = parse()
    transformers.utils.logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = report.begin(report.cuda_device() if options.device == "cuda" else report.cpu_device())
    model = build(options)
    for batch in options.batches:
        # A continuation without depth begins after one token. Prompts that are depths too are timed on the way.
        calls = {max(1, depth): options.new for depth in options.depths}
        calls = {prompt: 0 for prompt in options.prompts} | calls
        for prompt, new in calls.items():
            for made in rows_of(model, options, batch, prompt, new):
                result["rows"].append(made)
                if options.json:
                    report.write(result, options.json)
                if made.get("times"):
                    median = made["times"]["median_us"]
                    figure = f"{made['tokens'] / median * 1e6:.1f} tokens/s; {made['path']}"
                else:
                    figure = made["missing"]
                print(f"{made['name']}, batch {batch}: {figure}", *made.get("marks", []), sep="; ", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (report.NoDriver, OSError, torch.cuda.OutOfMemoryError) as error:
        print(f"generate: {kernels.one_line(error)}", file=sys.stderr)
        sys.exit(2)
