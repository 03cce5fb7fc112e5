"""What the first day on a GPU must measure before anything is believed; each mode prints what it found, writes rows in the
schema of src/bench/report.rs, and ends with 1 where something is to be done about it.

    measure.py switches --rigel bin/rigel --config models/configs/starcoder2-3b.json --json OUT
    measure.py cupti    …      a step as CUPTI saw it, against steps that nobody watches
    measure.py dram     … --ncu ncu      bytes from memory, against those that the launchers declare
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
import report

# Variables, and what to do where they are faster than the defaults.
VARIANTS = (
    ({}, ""),
    ({"RIGEL_CUDA_PDL": "0"}, "early starts gain nothing here: set it, and look at shared memory between kernels"),
    ({"RIGEL_CUDA_GRAPHS": "0"}, "graphs gain nothing here: set it"),
    ({"RIGEL_CUDA_CARVEOUT": "100"}, "kernels did not meet on one SM: make it the default"),
    ({"RIGEL_CUDA_CARVEOUT": "58"}, "kernels did not meet on one SM: make it the default"),
)
# Runs of one thing differ by so much.
NOISE = 1.02
CUPTI_NOISE = 1.02
DRAM_NOISE = 1.05


class Unmeasured(Exception):
    """Why there is no figure, in one line."""


def run(words, variables=None):
    """The command's output; its last line where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | (variables or {}))
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unmeasured(f"{Path(words[0]).name} {words[1]}: {lines[-1]}")
    return done.stdout


def rows_of(words, variables=None):
    """The rows of a command that takes --json."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part.json")
        run([*words, "--json", str(part)], variables)
        return json.loads(part.read_text())["rows"]


def named(variables):
    return " ".join(f"{name}={value}" for name, value in variables.items()) or "defaults"


def step_us(row):
    """Of a generation, microseconds of one step."""
    return row["times"]["median_us"] / row["tokens"] * row.get("shape", {}).get("batch", 1)


def generation(options, variables=None, depth="0"):
    line = [options.rigel, "bench", "model", "--device", "cuda", "--dummy-weights", options.config]
    line += ["-p", "16", "-n", "64", "-d", depth, "-b", "1", "-r", "5"]
    found = [row for row in rows_of(line, variables) if row["name"].startswith("tg") and row.get("times")]
    if not found:
        raise Unmeasured("rigel bench model gave no row for generation")
    return found[0]


def switches(options):
    rows, advice, default = [], [], None
    for variables, otherwise in VARIANTS:
        row = generation(options, variables)
        us = step_us(row)
        default = default or us
        marks = []
        if us * NOISE < default:
            marks = [f"{default / us:.2f} times as fast as the defaults: {otherwise}"]
            advice.append(f"{named(variables)}: {marks[0]}")
        print(f"{named(variables)}: {us:.1f} µs a step, {default / us:.3f} of the defaults' speed")
        rows.append(row | {"by": f"rigel, {named(variables)}", "marks": row.get("marks", []) + marks})
    return rows, advice


def cupti(options):
    line = [options.rigel, "profile", "--dummy-weights", options.config, "--batch", "1", "--depth", "512"]
    rows = [row for row in rows_of(line) if row["name"].startswith("decode") and row.get("times")]
    total = [row for row in rows if row["name"] == "decode step"]
    if not total:
        raise Unmeasured("rigel profile gave no row for a decode step")
    if total[0].get("path") != "cupti":
        raise Unmeasured("rigel profile found no CUPTI, and timed launches by events: name it with --cupti")
    watched, alone = total[0]["times"]["median_us"], step_us(generation(options, depth="512"))
    print(f"a step under CUPTI {watched:.1f} µs, alone {alone:.1f} µs: {watched / alone:.3f}")
    gaps = [row["values"]["gap_us"] for row in rows if "gap_us" in row.get("values", {})]
    early = sum(gap < 0 for gap in gaps) / max(1, len(gaps))
    print(f"{early:.0%} of the kernels start before the one ahead has ended")
    values = {"watched_us": watched, "alone_us": alone, "ratio": watched / alone, "early_starts": early}
    advice = []
    if early == 0:
        advice.append("no kernel starts before the one ahead has ended: RIGEL_CUDA_CARVEOUT=100, else RIGEL_CUDA_PDL=0")
    if not 1 / CUPTI_NOISE < watched / alone < CUPTI_NOISE:
        advice += [f"steps under CUPTI take {watched / alone:.2f} of their time: gaps that rigel profile shows may not be there"]
    return [report.row("profile", "decode step under CUPTI", "rigel", values=values, marks=advice)], advice


def dram(options):
    words = [options.rigel, "bench", "kernels", "15b", "gemm", "up_proj", "rows=64"]
    declared = [row for row in rows_of(words) if row.get("bytes") and row["by"] == "rigel"]
    if not declared:
        raise Unmeasured("rigel bench kernels gave no row with bytes")
    metrics = "dram__bytes_read.sum,dram__bytes_write.sum"
    watch = [options.ncu, "--csv", "--metrics", metrics, "--clock-control", "none", "--print-units", "base"]
    watch += ["--kernel-name", "regex:^(gemm_small_m|gemm_sm90)_", "--launch-count", "8"]
    found = counted(run([*watch, *words]))
    if not found:
        raise Unmeasured("ncu counted no launch of a gemm")
    bytes_moved = sorted(found)[len(found) // 2]
    ratio = bytes_moved / declared[0]["bytes"]
    print(f"{declared[0]['name']}: {bytes_moved:.0f} bytes from memory, {declared[0]['bytes']} declared: {ratio:.3f}")
    advice = []
    if ratio > DRAM_NOISE:
        advice = [f"{ratio:.2f} times the declared bytes come from memory: evict-first loads lose half of their 256 bytes?"]
    values = {"dram_bytes": bytes_moved, "declared_bytes": float(declared[0]["bytes"]), "ratio": ratio}
    name = f"{declared[0]['name']}, bytes from memory"
    return [report.row("kernels", name, "ncu", values=values, marks=advice)], advice


def counted(text):
    """Bytes of each launch, read and written together, of ncu's table."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    launches = {}
    for line in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        value = float(line["Metric Value"].replace(",", ""))
        launches[line["ID"]] = launches.get(line["ID"], 0.0) + value
    return list(launches.values())


MODES = {"switches": switches, "cupti": cupti, "dram": dram}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    for name in ("rigel", "config", "json"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--ncu", default="ncu")
    options = parser.parse_args()
    try:
        rows, advice = MODES[options.mode](options)
    except (Unmeasured, OSError, ValueError, KeyError) as error:
        print(f"measure: {error}", file=sys.stderr)
        return 1
    report.write({"rows": rows, "ceilings": [], "invalid": []}, options.json)
    for text in advice:
        print(f"do: {text}", file=sys.stderr)
    return 1 if advice else 0


if __name__ == "__main__":
    sys.exit(main())
