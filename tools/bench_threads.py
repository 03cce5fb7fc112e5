"""Tokens a second of two builds of rigel by threads and busy neighbours, for docs/performance.md.

    rigel synth models/configs/starcoder2-600m.json --tokenizer nano --out checkpoint
    python3 tools/bench_threads.py --before old/rigel --after target/release/rigel --model checkpoint --write docs/performance.md

For one thread, the default (one for each core), one more than that and four times as many: decoding, one sequence, beside no,
one and ten processes that do nothing but use a core. The builds take turns; a cell is the median of the rounds. A run
decodes short texts one after the other (`rigel generate --json`, no drafts) until its time is over; loading, prefill and
the text under way at the end do not count. The neighbours end with this script, whatever ends it.
"""

import argparse
import datetime
import json
import os
import platform
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEIGHBOURS = (0, 1, 10)
# Ends when its parent is gone, even if that was killed.
SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""
# Tokens of one text: few enough that the slowest cell finishes some in its time.
NANO_TOKENS = 64
MODEL_TOKENS = 4
# A run that has not finished one text by then is given up.
PATIENCE = 120
BEGIN = "<!-- tools/bench_threads.py: begin -->"
END = "<!-- tools/bench_threads.py: end -->"


class Neighbours:
    """Processes that are always busy."""

    def __init__(self, count):
        self.processes = []
        self.count = count

    def __enter__(self):
        for _ in range(self.count):
            self.processes.append(subprocess.Popen([sys.executable, "-c", SPIN]))
        time.sleep(0.3 if self.count else 0)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def rate(rigel, model, threads, prompts, tokens, seconds):
    """Tokens a second of one run; the number of texts it finished."""
    command = [rigel, "generate", "--json", "--ignore-eos", "--quiet", "--device", "cpu", "--speculation", "off"]
    command += ["--token-ids", prompts, "-n", str(tokens)]
    command += ["--model", model] if model else []
    command += ["--threads", str(threads)] if threads else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    texts, steps, took = 0, 0, 0.0
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    pending = b""
    begin = time.monotonic()
    try:
        while time.monotonic() - begin < (seconds if texts else PATIENCE):
            if not selector.select(timeout=0.05):
                continue
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                timings = json.loads(line)["timings"]
                texts += 1
                steps += timings["completion_tokens"] - 1
                took += timings["decode"]
    finally:
        process.kill()
        _, errors = process.communicate()
    if not texts:
        sys.exit(f"{' '.join(command)}: no text within {PATIENCE} s: {errors.decode(errors='replace')}")
    return steps / took


def measure(arguments, prompts):
    """Rates by model, neighbours, threads and build: [(key, [rate, …])]."""
    n = cores()
    settings = [("1", 1), (f"{n} (default)", None), (str(n + 1), n + 1), (str(4 * n), 4 * n)]
    builds = [("before", arguments.before), ("after", arguments.after)]
    models = [("nano", None, NANO_TOKENS)]
    models += [(Path(model).name, model, arguments.tokens) for model in arguments.model]
    rates = {}
    for turn in range(arguments.rounds):
        for name, model, tokens in models:
            for neighbours in NEIGHBOURS:
                with Neighbours(neighbours):
                    for label, threads in settings:
                        for build, rigel in builds[:: -1 if turn % 2 else 1]:
                            found = rate(rigel, model, threads, prompts, tokens, arguments.seconds)
                            rates.setdefault((name, neighbours, label, build), []).append(found)
                            print(f"{turn + 1}: {name}, {neighbours} busy, {label} threads, {build}: {found:.1f}",
                                  file=sys.stderr)
    return [label for label, _ in settings], rates


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def markdown(labels, rates, rounds):
    """The table, and what the targets say of it."""
    median = {key: statistics.median(values) for key, values in rates.items()}
    situations = list(dict.fromkeys(key[:2] for key in rates))
    one, default = labels[0], labels[1]
    head = ["model", "busy neighbours", *(f"{label} thread{'s' * (label != '1')}" for label in labels)]
    head += ["default to the better of 1 and N", "default to before"]
    rows = []
    for situation in situations:
        cell = {(label, build): median[*situation, label, build] for label in labels for build in ("before", "after")}
        row = [situation[0], str(situation[1])]
        row += [f"{number(cell[label, 'before'])} → {number(cell[label, 'after'])}" for label in labels]
        better = max(cell[one, "after"], cell[default, "after"])
        row += [f"{cell[default, 'after'] / better:.2f}", f"{cell[default, 'after'] / cell[default, 'before']:.2f} ×"]
        rows.append(row)
    lines = [" | ".join(["", *row, ""]).strip() for row in [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]]
    about = f"Tokens a second, before → after, medians of {rounds} rounds; {processor()}, {cores()} cores, " \
            f"{datetime.date.today().isoformat()}."
    return "\n".join([about, "", *lines])


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path, table):
    """Puts the table between the file's markers."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{path}: has not one line {BEGIN} and one line {END}")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a build of rigel")
    parser.add_argument("--after", required=True, help="another one")
    parser.add_argument("--model", action="append", default=[], help="a checkpoint with a tokenizer, beside nano; repeatable")
    parser.add_argument("--tokens", type=int, default=MODEL_TOKENS, help="of one text of such a model [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one run [%(default)s]")
    parser.add_argument("--json", type=Path, help="write every rate there")
    parser.add_argument("--write", type=Path, help="put the table between this file's markers, instead of printing it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text('{"token_ids":[5,6,7]}\n' * 10_000)
        labels, rates = measure(arguments, str(prompts))
    if arguments.json:
        rows = [dict(zip(("model", "neighbours", "threads", "build"), key), rates=values) for key, values in rates.items()]
        arguments.json.write_text(json.dumps({"processor": processor(), "cores": cores(), "rows": rows}, indent=1) + "\n")
    table = markdown(labels, rates, arguments.rounds)
    if arguments.write:
        write(arguments.write, table)
    else:
        print(f"{BEGIN}\n\n{table}\n\n{END}")


if __name__ == "__main__":
    main()
