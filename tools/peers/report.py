"""Results in the schema of src/bench/report.rs, for scripts. Standard library alone."""

import ctypes
import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

SCHEMA = "rigel-bench-1"
LIBRARIES = ("libcuda.so.1", "libcuda.so")
# Of CUdevice_attribute.
MULTIPROCESSORS, L2_BYTES, MAJOR, MINOR = 16, 38, 75, 76


class NoDriver(Exception):
    """Why there is no GPU to run on, in one line."""


def cuda_device():
    """The DeviceRecord of the first GPU, from its driver."""
    driver, reasons = None, []
    for library in LIBRARIES:
        try:
            driver = ctypes.CDLL(library)
            break
        except OSError as error:
            reasons.append(str(error))
    if driver is None:
        raise NoDriver(f"no NVIDIA driver: {reasons[0]}")

    def ask(function, *arguments):
        code = getattr(driver, function)(*arguments)
        if code:
            raise NoDriver(f"the NVIDIA driver is there but does not work: {function} returned {code}")

    ask("cuInit", 0)
    count, device, version, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    ask("cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise NoDriver("the NVIDIA driver is there but finds no GPU")
    ask("cuDeviceGet", ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(128)
    ask("cuDeviceGetName", name, len(name), device)
    ask("cuDriverGetVersion", ctypes.byref(version))
    ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)

    def attribute(number):
        value = ctypes.c_int()
        ask("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    return {
        "kind": "cuda",
        "name": name.value.decode(errors="replace"),
        "driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "compute_capability": f"{attribute(MAJOR)}.{attribute(MINOR)}",
        "units": attribute(MULTIPROCESSORS),
        "memory_bytes": memory.value,
        "cache_bytes": attribute(L2_BYTES),
    }


def cpu_device():
    """The DeviceRecord of the processor."""
    name, memory = "unknown processor", 0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    except OSError:  # not Linux: nothing else is known
        pass
    return {"kind": "cpu", "name": name, "units": os.cpu_count() or 1, "memory_bytes": memory, "cache_bytes": 0}


def commit_of(root):
    """The commit of a pack (its manifest) or of a checkout."""
    try:
        return json.loads((root / "manifest.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        pass
    git = lambda *words: subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    try:
        head, status = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def begin(device, root=Path(__file__).resolve().parents[2]):
    """An empty report of this process."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "schema": SCHEMA,
        "date": now(),
        "commit": commit_of(root),
        "command": command,
        "device": device,
        "ceilings": [],
        "invalid": [],
        "rows": [],
    }


def times(samples):
    """Times of samples in microseconds: quantiles between neighbours, as src/bench/times.rs has them."""
    ordered = sorted(samples)

    def at(share):
        place = share * (len(ordered) - 1)
        below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
        return below + (above - below) * (place - int(place))

    return {"median_us": at(0.5), "low_us": at(0.1), "high_us": at(0.9), "samples": len(ordered)}


def row(suite, name, by, **fields):
    """One figure; fields are those of Row, and those that are None are left out."""
    return {"suite": suite, "name": name, "by": by} | {key: value for key, value in fields.items() if value is not None}


def write(report, path):
    """Whole: a reader finds this one or the one before, never half of one."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    unfinished.replace(path)
