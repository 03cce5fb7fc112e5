"""What to look at first on a kind of GPU that the kernels have never met: named checks, each with what to do where it
fails. They come ahead of the tests, most basic first: what a later one needs, an earlier one has tried."""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from typing import Tuple

import report

# Numbers of the switches' table in docs/cuda.md.
NO_SWITCH = "no switch avoids it: use --device cpu until it is mended"


@dataclass(frozen=True)
class Check:
    """A check by tests of the packed binaries. A filter is the beginning of their names."""

    name: str
    # (binary, filter); an empty filter takes all of a binary.
    tests: Tuple[Tuple[str, str], ...]
    # What to do where it fails.
    otherwise: str
    seconds: float = 180
    # Repetitions, where its tests repeat something.
    repeats: int = 0


CHECKS = (
    Check(
        "each instruction does what it says",
        (("kernels", "conformance::"), ("kernels", "conformance_hopper::")),
        "the test names the function of kernels/ptx/; every kernel that calls it is suspect: RIGEL_CUDA_GEMM=sm80, "
        "RIGEL_CUDA_ATTENTION_DECODE=sm80 and RIGEL_CUDA_ATTENTION_PREFILL=sm80 leave out what Hopper alone has",
    ),
    Check(
        "boxes wholly outside of a tensor bring zeros",
        (("kernels", "conformance_hopper::boxes_wholly_outside"),),
        "small-M gemm and gemm_sm90 load such boxes: RIGEL_CUDA_GEMM=sm80",
    ),
    Check(
        "2^0 is 1 and 2^-infinity is 0",
        (("kernels", "conformance::powers_of_two_of_zero"),),
        f"attention leaves out rescaling by 2^0 (kernels/common/attention.cuh); {NO_SWITCH}",
    ),
    Check(
        "a wait that never ends traps and names its barrier",
        (("kernels", "mbarrier_trap::"),),
        "a build with RIGEL_TRAP_MBARRIER=1 will not name what hangs: use RIGEL_CUDA_SYNC=1, which names the kernel",
    ),
    Check(
        "programmatic edges survive the capture of a graph",
        (("cuda", "switches::programmatic_edges"),),
        "steps are right but slower: compare RIGEL_CUDA_GRAPHS=0 with RIGEL_CUDA_PDL=0 (measured below)",
    ),
    Check(
        "early starts, graphs and carve-outs change no bit",
        (("cuda", "switches::overlap_graphs_and_carveout"), ("cuda", "backend::a_recorded_step")),
        "RIGEL_CUDA_PDL=0 where steps that are not captured differ, RIGEL_CUDA_GRAPHS=0 where captured ones do",
    ),
    Check(
        "every algorithm by name gives the same model",
        (("cuda", "switches::linear_layers"), ("cuda", "switches::attention_is_computed")),
        "the test names the algorithm: choose another by the same switch",
    ),
    Check(
        "gemm_sm90 and small-M gemm agree with float64",
        (("kernels", "gemm_sm90::"), ("kernels", "gemm_small_m::")),
        "RIGEL_CUDA_GEMM=sm80",
    ),
    Check(
        "the clusters that a plan wants run at one time",
        (("kernels", "gemm_small_m::the_clusters_of_a_plan"),),
        "results are right, some clusters wait for a second round; compare RIGEL_CUDA_GEMM=sm80, and put the number that "
        "the test prints into Plan::choose",
    ),
    Check(
        "arrivals across a cluster, many times, beside other work",
        (("kernels", "gemm_small_m::a_product_has_the_same_bits"), ("kernels", "gemm_sm90::a_product_has_the_same_bits")),
        "a lost arrival or a missing fence: RIGEL_CUDA_GEMM=sm80; compute-sanitizer's racecheck on the same test",
        seconds=300,
        repeats=200_000,
    ),
    Check(
        "prefill attention on Hopper agrees with float64",
        (("kernels", "attention_prefill_sm90::"),),
        "RIGEL_CUDA_ATTENTION_PREFILL=sm80",
    ),
    Check(
        "prefill attention hands over from copies to boxes, many times",
        (("kernels", "attention_prefill_sm90::attention_has_the_same_bits"),),
        "a lost proxy fence: RIGEL_CUDA_ATTENTION_PREFILL=sm80",
        repeats=2_000,
    ),
    Check(
        "decode attention agrees with float64",
        (("kernels", "attention_decode::"),),
        "RIGEL_CUDA_ATTENTION_DECODE=sm80",
    ),
    Check(
        "graphs of every bucket fit into what the plan leaves the driver",
        (("cuda", "backend::graphs_of_every_bucket"),),
        "results are right, memory may run out: fewer --max-seqs, or RIGEL_CUDA_GRAPHS=0",
    ),
)


def key(name):
    return f"checks/{name}"


def judge_tests(check):
    """One row for all of its tests, which together.py has counted."""

    def judge(code, output, seconds):
        passed = code == 0
        skips = [line for line in output.splitlines() if re.match(r"(\w+: )?skipped", line)]
        if passed and skips:
            return report.row("tests", check.name, "rigel", missing=skips[0])
        marks = []
        if not passed:
            failed = re.findall(r"^test (\S+) \.\.\. FAILED", output, re.MULTILINE)
            what = f"failed: {', '.join(dict.fromkeys(failed))}" if failed else output.strip().split("\n")[-1]
            marks = [f"{what}; do: {check.otherwise}"]
        values = {"passed": float(passed), "seconds": round(seconds, 2)}
        return report.row("tests", check.name, "rigel", values=values, marks=marks)

    return judge


def tests_of(check, manifest):
    """Of each binary the tests that the check takes, without those that only print for a person."""
    found = []
    for binary, start in check.tests:
        ignored = set(manifest["ignored"].get(binary, []))
        names = [name for name in manifest["tests"].get(binary, []) if name.startswith(start) and name not in ignored]
        found.append((binary, names))
    return found


def items(places, Item):
    """An item for each check by tests, then those that measure."""
    made = []
    for check in CHECKS:
        found = tests_of(check, places.manifest)
        missing = [f"{binary} {start}".strip() for (binary, start), (_, names) in zip(check.tests, found) if not names]
        line = lambda binary, names: [str(places.root / "bin/tests" / binary), "--exact", *names, "--nocapture"]
        runs = [{"passes": len(names), "command": line(binary, names)} for binary, names in found]
        command = [sys.executable, str(places.root / "tools/gpu_check/together.py"), json.dumps(runs)]
        environment = {"RIGEL_TEST_DEVICE": "cuda", "RIGEL_TEST_ROOT": str(places.root)}
        if check.repeats:
            environment["RIGEL_TEST_REPEATS"] = str(check.repeats)
        item = Item(key(check.name), command, check.seconds, environment, judge=judge_tests(check))
        item.missing = f"this pack has no tests {', '.join(missing)}" if missing else None
        made.append(item)
    return made + [measured(places, Item, name, words, seconds) for name, words, seconds in MEASURED]


# Of tools/gpu_check/measure.py: what it compares, and what it says to do is there.
MEASURED = (
    ("early starts, graphs and carve-outs, each by its speed", "switches", 500),
    ("CUPTI sees the steps that run without it", "cupti", 300),
    ("bytes from memory are those declared", "dram", 300),
)


def measured(places, Item, name, what, seconds):
    part = places.part(key(name))
    script = [sys.executable, str(places.root / "tools/gpu_check/measure.py"), what, "--rigel", places.rigel]
    script += ["--config", places.config("3b"), "--json", str(part)]
    item = Item(key(name), script, seconds, part=part)
    if what == "dram":
        ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin" + os.pathsep + "/opt/nvidia/bin")
        item.command += ["--ncu", ncu or "ncu"]
        item.missing = None if ncu else "ncu (Nsight Compute) is not installed here"
    return item
