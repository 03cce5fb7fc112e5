"""Runs the stages: each item a process of its own with a deadline, every row in the result as it comes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

from . import pack, stages, summary

KEPT_OUTPUT = 200_000
# An item is not begun with less time than this.
MIN_SECONDS = 5
# Calls that an item may be cut off by the end of.
MAX_TRIES = 3
DONE, FAILED, EXPIRED, MISSING, UNFINISHED = "done", "failed", "timed out", "missing", "unfinished"


class Refused(Exception):
    """Why nothing runs, in one line."""


class Result:
    """The one file: a report of src/bench/report.rs, and under `gpu_check` what became of each item and how many of the
    rows, ceilings and reasons of invalidity are its own, in the order of the items."""

    KEPT = ("rows", "ceilings", "invalid")

    def __init__(self, path, device, root):
        self.path = path
        self.report = report.begin(device, root) | {"command": "tools/gpu-check run"}
        self.items = {}
        if path.exists():
            self.read()

    def read(self):
        before = json.loads(self.path.read_text())
        at = dict.fromkeys(self.KEPT, 0)
        for key, item in before["gpu_check"]["items"].items():
            for kept in self.KEPT:
                count = item[kept]
                item[kept] = before[kept][at[kept] : at[kept] + count]
                at[kept] += count
            self.items[key] = item
        self.report["date"] = before["date"]

    def put(self, item, status, seconds, note="", parts=None):
        parts = parts or {}
        line = shlex.join(Path(word).name if word.startswith("/") else word for word in item.command)
        entry = {"status": status, "seconds": round(seconds, 1), "command": line, "note": note}
        entry["tries"] = self.items.get(item.key, {}).get("tries", 0) + (status != MISSING)
        self.items[item.key] = entry | {kept: parts.get(kept, []) for kept in self.KEPT}

    def write(self, current=None):
        """With what items that still run have measured so far."""
        items = dict(self.items)
        for key, parts in (current or {}).items():
            blank = {"status": UNFINISHED, "seconds": 0, "command": "", "note": "", "tries": 1}
            items[key] = blank | {kept: parts.get(kept, []) for kept in self.KEPT}
        whole = dict(self.report)
        for kept in self.KEPT:
            whole[kept] = [value for item in items.values() for value in item[kept]]
        counts = lambda item: item | {kept: len(item[kept]) for kept in self.KEPT}
        whole["gpu_check"] = {"items": {key: counts(item) for key, item in items.items()}}
        report.write(whole, self.path)

    def is_settled(self, item, again):
        if item.makes:
            return False  # another machine has it not
        status = self.items.get(item.key, {}).get("status")
        settled = {DONE} if again else {DONE, FAILED, EXPIRED}
        # What was missing may be there on another machine.
        return status in settled


class Process:
    """An item while it runs."""

    def __init__(self, item, seconds):
        self.item, self.began, self.limit = item, time.monotonic(), seconds
        self.output = tempfile.TemporaryFile()
        self.found = {}
        if item.part:
            item.part.unlink(missing_ok=True)
        self.error = None
        try:
            self.process = subprocess.Popen(
                item.command,
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                env=os.environ | item.environment,
                start_new_session=True,
            )
        except OSError as error:
            self.process, self.error = None, str(error)

    def seconds(self):
        return time.monotonic() - self.began

    def ended(self):
        return self.process is None or self.process.poll() is not None

    def is_over(self):
        return self.seconds() > self.limit

    def kill(self):
        """With all that it started."""
        if self.process and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has just ended
                pass
            self.process.wait()

    def said(self):
        if self.error:
            return self.error
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - KEPT_OUTPUT))
        return self.output.read().decode(errors="replace")

    def parts(self):
        """What its own result holds by now."""
        try:
            self.found = json.loads(self.item.part.read_text()) if self.item.part else {}
        except (OSError, ValueError):  # none yet, or half of one: the one before stands
            pass
        return {kept: self.found.get(kept, []) for kept in Result.KEPT}

    def version(self):
        """Changes whenever its own result does."""
        try:
            return self.item.part.stat().st_mtime_ns if self.item.part else None
        except OSError:
            return None


def settle(result, process, expired_own, expired_call):
    """Puts down what became of a process that has ended or was killed."""
    item, seconds, output = process.item, process.seconds(), process.said()
    parts = process.parts()
    code = process.process.returncode if process.process else 127
    if expired_call:
        # Killed so that this call ends in time; the next one begins with it. Not for ever.
        tries = result.items.get(item.key, {}).get("tries", 0) + 1
        late = f"no time for it in {tries} calls, at last {seconds:.0f} s"
        status, note = (EXPIRED, late) if tries >= MAX_TRIES else (UNFINISHED, "")
    elif expired_own:
        status, note = EXPIRED, f"killed after {seconds:.0f} s"
    elif code:
        status, note = FAILED, stages.last_lines(output)
    else:
        status, note = DONE, ""
    if item.judge and status != UNFINISHED:
        row = item.judge(code, output, seconds)
        if row is not None:
            if status == EXPIRED:
                row = row | {"values": {"passed": 0.0, "seconds": round(seconds, 1)}, "marks": [note]}
                row.pop("missing", None)
            parts["rows"] = [row]
            if status in (DONE, FAILED) and row.get("values", {}).get("passed") == 0.0:
                status, note = FAILED, "; ".join(row["marks"])
    result.put(item, status, seconds, note, parts)
    if status == FAILED:
        log(result.path, item, output)
    process.output.close()


def log(path, item, output):
    """The output of what failed, beside the result."""
    with open(path.with_suffix(".log"), "a") as file:
        file.write(f"==== {item.key}\n{shlex.join(item.command)}\n{output[-20_000:]}\n")


def missing_row(item):
    suite = {"checks": "tests", "tests": "tests", "sanitizer": "tests", "parity": "parity", "kernels": "kernels"}
    name = item.key.split("/", 1)
    return report.row(suite.get(name[0], "model"), name[1], "gpu-check", missing=item.missing)


def run_stage(result, stage, seconds, again=False, tick=0.1):
    """Runs what is left of a stage within so many seconds."""
    end = time.monotonic() + min(seconds, stages.STAGE_SECONDS)
    waiting = []
    for item in stage.items:
        if result.is_settled(item, again):
            continue
        if item.makes and item.makes.exists():
            result.put(item, DONE, 0, "there already")
        elif item.missing:
            result.put(item, MISSING, 0, item.missing, {"rows": [missing_row(item)] if item.judge or item.part else []})
        else:
            waiting.append(item)
    result.write()
    waiting.reverse()
    running, seen = [], {}
    try:
        while waiting or running:
            while waiting and len(running) < stage.jobs and end - time.monotonic() > MIN_SECONDS:
                item = waiting.pop()
                running.append(Process(item, min(item.seconds, end - time.monotonic())))
            if not running:
                break  # no time to begin another
            changed = False
            for process in list(running):
                if not process.ended() and not process.is_over():
                    version = process.version()
                    changed |= seen.get(process.item.key) != version
                    seen[process.item.key] = version
                    continue
                over = not process.ended()
                process.kill()
                own = over and process.limit >= process.item.seconds
                settle(result, process, own, over and not own)
                running.remove(process)
                changed = True
            if changed:
                result.write({process.item.key: process.parts() for process in running if process.item.part})
            time.sleep(tick)
    finally:
        # Interrupted: nothing is left running, and what was measured is kept.
        for process in running:
            process.kill()
            result.put(process.item, UNFINISHED, process.seconds(), "interrupted", process.parts())
            process.output.close()
        result.write()


def check_pack(root):
    """The manifest of a pack that is whole and whose programs start here."""
    path = root / "manifest.json"
    if not path.exists():
        raise Refused(f"{root} is a checkout, no pack; make one with tools/gpu-check pack, unpack it, run it there")
    manifest = json.loads(path.read_text())
    if manifest.get("schema") != pack.SCHEMA:
        raise Refused(f"{path}: its schema is {manifest.get('schema')!r}, expected {pack.SCHEMA!r}; pack again")
    for name, size in manifest["files"].items():
        found = (root / name).stat().st_size if (root / name).is_file() else None
        if found != size:
            raise Refused(f"{root / name}: {found} bytes, expected {size}; unpack the archive again")
    rigel = subprocess.run([root / "bin/rigel", "--version"], capture_output=True, text=True)
    if rigel.returncode:
        raise Refused(f"bin/rigel does not start here: {rigel.stderr.strip()}")
    for binary, tests in manifest["tests"].items():
        try:
            found = pack.names_of_tests(root / "bin/tests" / binary)
        except pack.Refused as error:
            raise Refused(f"bin/tests/{binary} does not start here: {error}") from None
        if found != tests:
            raise Refused(f"bin/tests/{binary} has other tests than the manifest says; unpack the archive again")
    count = sum(map(len, manifest["tests"].values()))
    files = f"{len(manifest['files'])} files"
    summary.line(f"pack of commit {manifest['commit']}: {files} whole; {rigel.stdout.strip()} starts;"
                 f" {len(manifest['tests'])} test binaries start, with {count} tests")  # fmt: skip
    return manifest


def check_python(python):
    """Why there are no peers, or nothing."""
    try:
        words = [python, "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no peers: {error}"
    if done.returncode:
        return f"no peers: {python} has no PyTorch and transformers: {done.stderr.strip().splitlines()[-1]}"
    torch, transformers = done.stdout.split()[-2:]
    summary.line(f"peers: {python} with PyTorch {torch} and transformers {transformers}")
    return None


def result_path(out, device, commit):
    """That of an earlier call for this commit and device, else a new one."""
    slug = re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
    before = sorted(out.glob(f"{slug}-*-{commit}.json"))
    return before[-1] if before else out / f"{slug}-{report.now()[:10]}-{commit}.json"


def run(root, options):
    ends = time.monotonic() + options.budget
    manifest = check_pack(root)
    no_peers = check_python(options.python)
    if no_peers:
        summary.line(no_peers)
    device = report.cuda_device()
    out = options.out or root / "benches/results"
    out.mkdir(parents=True, exist_ok=True)
    result = Result(result_path(out, device, manifest["commit"]), device, root)
    summary.line(f"{device['name']}, driver {device['driver']}; result: {result.path}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as parts:
        scratch = options.scratch or Path(tempfile.gettempdir(), "rigel-gpu-check-scratch")
        scratch.mkdir(parents=True, exist_ok=True)
        places = stages.Places(root, manifest, options.python, scratch, Path(parts), out)
        places.no_peers = no_peers
        every = stages.all_stages(places)
        chosen = [stage for stage in every if options.stage in (None, stage.name)]
        try:
            for stage in chosen:
                run_stage(result, stage, ends - time.monotonic(), options.again)
        except KeyboardInterrupt:
            summary.line("interrupted; run it again to go on")
        finally:
            summary.print_all(result, every)
    return summary.exit_code(result, chosen)
