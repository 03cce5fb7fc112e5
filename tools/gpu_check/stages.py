"""What runs on the GPU machine, most valuable first."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, List, Optional

import report

from . import checks as first

NAMES = ["checks", "tests", "parity", "sanitizer", "kernels", "model", "generate", "profile", "start"]
# A stage ends by then, whatever is left of it.
STAGE_SECONDS = 530
TEST_SECONDS, SANITIZER_SECONDS = 240, 120
# By the beginnings of their names.
ORDER = ("kernels::conformance", "cuda::device_layer", "kernels::", "cuda::parity", "")
# Enough of each for every kernel to have been launched; all of conformance.
SANITIZED_TESTS = 3
SANITIZERS = ("memcheck", "racecheck")
SANITIZER_FOUND = 99
# In llama-bench's words; the same for peers.
PROMPTS, DEPTHS, BATCHES = "512,4096", "0,4096", "1,8,64"
KERNELS = (
    "15b gemm", "15b gemv", "15b attention_prefill", "15b attention_decode", "3b gemm", "3b gemv", "3b attention",
    "norm", "sample", "embed", "logprobs", "15b attention_batch_invariant", "7b",
)  # fmt: skip


@dataclass
class Item:
    """One process: a test, or a command that writes a result of its own."""

    key: str
    command: List[str]
    seconds: float
    environment: dict = field(default_factory=dict)
    # Its own result, named in its arguments; none where its output is judged.
    part: Optional[Path] = None
    # Of an item without a part: its row, from exit code, output and seconds.
    judge: Optional[Callable] = None
    # What it leaves behind for the items after it. Whole where it exists: it is written aside and renamed.
    makes: Optional[Path] = None
    # Why it cannot run here.
    missing: Optional[str] = None


@dataclass
class Stage:
    name: str
    title: str
    items: List[Item]
    # Items at a time. What is timed has the machine to itself.
    jobs: int = 1


class Places:
    """Where things are in a pack, and on this machine."""

    def __init__(self, root, manifest, python, scratch, parts, pictures):
        self.root, self.manifest, self.parts, self.pictures = root, manifest, parts, pictures
        self.python, self.scratch = python, scratch
        self.rigel = str(root / "bin/rigel")
        # Why there are no peers; set where Python was tried.
        self.no_peers = None

    def part(self, key):
        return self.parts / (key.replace("/", ".").replace(" ", "_") + ".json")

    def config(self, model):
        return str(self.root / f"models/configs/starcoder2-{model}.json")


def last_lines(output, count=3):
    """What a failure says: its panic, else its end."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    panics = [i for i, line in enumerate(lines) if "panicked at" in line]
    chosen = lines[panics[-1] : panics[-1] + count] if panics else lines[-count:]
    return " / ".join(chosen)[:600]


def judge_test(name, test):
    def judge(code, output, seconds):
        values = {"passed": float(code == 0 and "1 passed" in output), "seconds": round(seconds, 2)}
        function = test.split("::")[-1]
        skips = [line for line in output.splitlines() if line.startswith(f"{function}: skipped")]
        if skips:
            return report.row("tests", name, "rigel", missing=skips[0])
        marks = [] if values["passed"] else [last_lines(output)]
        return report.row("tests", name, "rigel", values=values, marks=marks)

    return judge


def packed_tests(places):
    """(binary, test) of every packed test: single instructions first, whole models last."""
    place = lambda name: next(i for i, start in enumerate(ORDER) if name.startswith(start))
    names = [(binary, test) for binary, tests in places.manifest["tests"].items() for test in tests]
    return sorted(names, key=lambda name: (place("::".join(name)), "::".join(name)))


def is_ignored(places, binary, test):
    return test in places.manifest["ignored"].get(binary, [])


def tests(places):
    items = []
    for binary, test in packed_tests(places):
        name = f"{binary}::{test}"
        item = Item(
            key=f"tests/{name}",
            command=[str(places.root / "bin/tests" / binary), "--exact", test, "--nocapture"],
            seconds=TEST_SECONDS,
            environment={"RIGEL_TEST_DEVICE": "cuda", "RIGEL_TEST_ROOT": str(places.root)},
            judge=judge_test(name, test),
        )
        ignored = is_ignored(places, binary, test)
        item.missing = "ignored: it prints figures for a person" if ignored else None
        items.append(item)
    return Stage("tests", "tests of kernels, device layer and backend", items, jobs=min(4, os.cpu_count() or 1))


def checks(places):
    return Stage("checks", "what to look at first, each with what to do where it fails", first.items(places, Item))


def judge_sanitizer(name):
    def judge(code, output, seconds):
        summaries = [line.strip("= ") for line in output.splitlines() if "SUMMARY:" in line]
        clean = code == 0 and "1 passed" in output and bool(summaries)
        values = {"passed": float(clean), "seconds": round(seconds, 2)}
        marks = [] if clean else ["; ".join(summaries) or last_lines(output)]
        return report.row("tests", name, "compute-sanitizer", values=values, marks=marks)

    return judge


def sanitizer(places):
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    items = []
    taken = {}
    for binary, test in packed_tests(places):
        area = f"{binary}::{test}".rsplit("::", 1)[0]
        if not area.startswith(("kernels::", "cuda::device_layer")):
            continue
        if is_ignored(places, binary, test) or test.endswith("::no_function_is_left_out"):
            continue
        taken[area] = taken.get(area, 0) + 1
        if taken[area] > SANITIZED_TESTS and not area.startswith("kernels::conformance"):
            continue
        for check in SANITIZERS:
            name = f"{check} {binary}::{test}"
            words = [tool or "compute-sanitizer", "--tool", check, "--error-exitcode", str(SANITIZER_FOUND)]
            # Tests of what the driver refuses make it refuse.
            words += ["--report-api-errors", "no"] if check == "memcheck" else []
            words += ["--print-limit", "5", str(places.root / "bin/tests" / binary), "--exact", test, "--nocapture"]
            # The test's own process is the one that is watched.
            environment = {"RIGEL_TEST_DEVICE": "cuda", "RIGEL_TEST_ROOT": str(places.root)}
            environment["RIGEL_TEST_CHILD"] = test
            item = Item(f"sanitizer/{name}", words, SANITIZER_SECONDS, environment, judge=judge_sanitizer(name))
            item.missing = None if tool else "compute-sanitizer is not installed here"
            items.append(item)
    # First one tool on one test of each area, and so on: the stage may end before all are through.
    place = {}
    for item in items:
        kind = item.key.rsplit("::", 1)[0]
        place[item.key] = sum(other.rsplit("::", 1)[0] == kind for other in place)
    items.sort(key=lambda item: place[item.key])
    return Stage("sanitizer", "compute-sanitizer on kernel tests", items, jobs=min(3, os.cpu_count() or 1))


def command(places, key, words, seconds, peers=False):
    """An item that writes its result where --json says."""
    part = places.part(key)
    item = Item(key, [*words, "--json", str(part)], seconds, part=part)
    item.missing = places.no_peers if peers else None
    return item


def parity(places):
    def one(name, *words, seconds):
        script = [places.python, str(places.root / "tools/peers/parity.py"), "--rigel", places.rigel]
        script += ["--scratch", str(places.scratch)]
        return command(places, f"parity/{name}", [*script, *words], seconds, peers=True)

    items = [
        one("3b", "--config", places.config("3b"), seconds=400),
        one("nano", "--model", str(places.root / "crates/rigel-nano/model"), "--tokens", "1,37,513,1027,700", seconds=120),
        one("15b of 4 layers", "--config", places.config("15b"), "--layers", "4", seconds=400),
        one("7b of 4 layers in f16", "--config", places.config("7b"), "--layers", "4", "--dtype", "f16", seconds=400),
    ]
    return Stage("parity", "log-probabilities beside transformers'", items)


def kernels(places):
    peers = [] if places.no_peers else ["--peers", places.python]
    bench = lambda words: [places.rigel, "bench", "kernels", words, *peers]
    items = [command(places, f"kernels/{words}", bench(words), 400) for words in KERNELS]
    published = [sys.executable, str(places.root / "tools/peers/published.py")]
    items.insert(0, command(places, "kernels/published", published, 30))
    return Stage("kernels", "kernels beside PyTorch's, and beside what others have published", items)


def model(places):
    def one(size, batches, *words):
        line = [places.rigel, "bench", "model", "--dummy-weights", places.config(size), "-b", batches, *words]
        line += ["--device", "cuda"]
        return command(places, f"model/{size} at batch {batches}", [*line, "-o", "json"], 400)

    lengths = ["-p", PROMPTS, "-n", "128", "-d", DEPTHS, "-r", "5"]
    wide = ["-p", "512", "-n", "128", "-d", "0,1024", "-r", "3"]
    items = [one("15b", "1", *lengths), one("15b", "64,256", *wide), one("15b", "8", *lengths)]
    items += [one("3b", BATCHES, *lengths), one("7b", BATCHES, *lengths)]
    return Stage("model", "whole models on random weights", items)


def generate(places):
    def one(size, batch):
        line = [places.python, str(places.root / "tools/peers/generate.py"), "--config", places.config(size)]
        line += ["-p", PROMPTS, "-n", "128", "-d", DEPTHS, "-b", batch, "-r", "3"]
        return command(places, f"generate/{size} at batch {batch}", line, 500, peers=True)

    items = [one(size, batch) for size in ("15b", "3b") for batch in BATCHES.split(",")]
    return Stage("generate", "transformers' generate on the same weights", items)


def checkpoint(places, stage):
    """The checkpoint that a stage loads, and the item that makes it."""
    folder = places.scratch / "starcoder2-3b"
    line = [places.rigel, "synth", places.config("3b"), "--out", str(folder)]
    return str(folder), Item(f"{stage}/a checkpoint to load", line, 300, makes=folder)


def profile(places):
    folder, made = checkpoint(places, "profile")

    def one(name, *words):
        key = f"profile/{name}"
        picture = ["--svg", str(places.pictures / f"profile-{name.replace(' ', '-')}.svg")]
        return command(places, key, [places.rigel, "profile", "--model", folder, *words, *picture], 240)

    items = [made, one("3b"), one("3b at batch 64", "--batch", "64")]
    return Stage("profile", "one decode step and one prefill as a timeline", items)


def start(places):
    folder, made = checkpoint(places, "start")
    bench = command(places, "start/3b", [places.rigel, "bench", "start", "--device", "cuda", "--model", folder], 400)
    return Stage("start", "from the start of the process to the first token", [made, bench])


def all_stages(places):
    makers = [checks, tests, parity, sanitizer, kernels, model, generate, profile, start]
    return [make(places) for make in makers]
