"""Builds what a GPU machine is to run, and packs it.

The pack is one folder laid out as the repository is, so that the same paths work in both:

    manifest.json       commit, files with their sizes, test binaries with their tests
    bin/rigel           the command line, release
    bin/tests/          test binaries of kernels, device layer and CUDA backend
    bin/benches/        benches that measure on a GPU
    conformance/        kernels/conformance, compiled
    kernels/{ptx,conformance}  their sources, which a test reads
    tests/goldens models tools
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import report

SCHEMA = "rigel-gpu-check-1"
FOLDER = "rigel-gpu-check"
MAX_BYTES = 50 << 20
TESTS = ("kernels", "cuda")
# Modules of tests that are about the interpreter.
INTERPRETER_ONLY = ("cost_model::", "faked_drivers::", "interpreter_speed::")
BENCHES = ("kernels",)
DATA = ("tests/goldens", "crates/rigel-nano/model", "models/configs", "kernels/ptx", "kernels/conformance", "tools/peers")
DATA += ("tools/gpu_check", "tools/gpu-check", "LICENSE")
# Test binaries embed the same kernels: a dictionary that reaches back over several of them finds each once.
DICTIONARY = 192 << 20


class Refused(Exception):
    """Why there is no pack, in one line."""


def cargo(root, *words):
    """Runs cargo and returns its messages."""
    line = ["cargo", *words, "--message-format=json-render-diagnostics"]
    print("gpu-check:", *line, file=sys.stderr)
    try:
        # A build that found no compiler would pack tests that skip themselves.
        environment = os.environ | {"RIGEL_REQUIRE_NVCC": "1"}
        done = subprocess.run(line, cwd=root, stdout=subprocess.PIPE, text=True, env=environment)
    except FileNotFoundError:
        raise Refused("cargo is not on the path; packing needs Rust (https://rustup.rs)") from None
    if done.returncode:
        raise Refused(f"cargo {words[0]} failed; its errors are above")
    return [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]


def executables(messages, kind):
    """Name to path, of one kind of target."""
    artifacts = (message for message in messages if message["reason"] == "compiler-artifact" and message["executable"])
    return {it["target"]["name"]: Path(it["executable"]) for it in artifacts if kind in it["target"]["kind"]}


def conformance(messages):
    """Where build.rs left the compiled conformance kernels."""
    ran = (message for message in messages if message["reason"] == "build-script-executed")
    found = [Path(it["out_dir"]) / "conformance" for it in ran]
    found = [folder for folder in found if any(folder.glob("*.fatbin"))]
    if len(found) != 1:
        raise Refused(f"compiled conformance kernels in {len(found)} folders, expected one; run tools/install-nvcc")
    return found[0]


def build_all(root):
    """Builds all, and returns {path in the pack: file}."""
    messages = cargo(root, "test", "--no-run", *(word for name in TESTS for word in ("--test", name)))
    tests, fatbins = executables(messages, "test"), conformance(messages)
    files = {f"bin/tests/{name}": path for name, path in tests.items()}
    files |= {f"conformance/{path.name}": path for path in fatbins.glob("*.fatbin")}
    files["bin/rigel"] = executables(cargo(root, "build", "--release", "--bin", "rigel"), "bin")["rigel"]
    benches = [name for name in BENCHES if (root / "benches" / f"{name}.rs").exists()]
    for name in benches:
        built = executables(cargo(root, "bench", "--no-run", "--bench", name), "bench")
        files[f"bin/benches/{name}"] = built[name]
    return files


def data(root):
    """Files of the repository that tests and peers read: those that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *DATA], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        raise Refused(f"{root} is no git checkout: {listed.stderr.strip()}")
    return {name: root / name for name in listed.stdout.split("\0") if name}


def names_of_tests(binary, *options):
    done = subprocess.run([binary, "--list", "--format", "terse", *options], capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"{binary} --list ended with {done.returncode}: {done.stderr.strip()}")
    names = [line[: -len(": test")] for line in done.stdout.splitlines() if line.endswith(": test")]
    return [name for name in names if not name.startswith(INTERPRETER_ONLY)]


def lay_out(files, folder):
    """Copies and strips, and returns what the manifest says of the files."""
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        if name.startswith("bin/"):
            subprocess.run(["strip", "--strip-all", target], check=True)
    binaries = {Path(name).name: folder / name for name in sorted(files) if name.startswith("bin/tests/")}
    return {
        "files": {name: (folder / name).stat().st_size for name in sorted(files)},
        "tests": {name: names_of_tests(path) for name, path in binaries.items()},
        "ignored": {name: names_of_tests(path, "--ignored") for name, path in binaries.items()},
    }


def archive(folder, out):
    """Solid: the same bytes are stored once. What is alike lies together, times and owners are nobody's."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": DICTIONARY}]

    def plain(entry):
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with lzma.open(out, "wb", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files:
            tar.add(path, f"{FOLDER}/{path.relative_to(folder)}", filter=plain)


LAST_BUILD = "target/gpu-check-build.json"


def pack(root, out, *, build):
    if (root / "manifest.json").exists():
        raise Refused(f"{root} is a pack; packing is done in a checkout")
    if shutil.which("strip") is None:
        raise Refused("strip is not on the path; install binutils")
    remembered = root / LAST_BUILD
    if build:
        built = build_all(root)
        commit = report.commit_of(root)
        remembered.write_text(json.dumps({"commit": commit, "files": {name: str(it) for name, it in built.items()}}))
    elif remembered.exists():
        before = json.loads(remembered.read_text())
        commit, built = before["commit"], {name: Path(path) for name, path in before["files"].items()}
    else:
        raise Refused("nothing was built yet; leave out --no-build")
    unfinished = out.with_name(out.name + ".unfinished")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = lay_out(data(root) | built, folder) | {"schema": SCHEMA, "commit": commit, "packed": report.now()}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        print("gpu-check: compressing", sum(manifest["files"].values()) >> 20, "MiB", file=sys.stderr)
        archive(folder, unfinished)
    size = unfinished.stat().st_size
    if size > MAX_BYTES:
        largest = sorted(manifest["files"].items(), key=lambda file: -file[1])[:5]
        unfinished.unlink()
        named = ", ".join(f"{name} {bytes >> 20} MiB" for name, bytes in largest)
        raise Refused(f"the pack is {size / (1 << 20):.1f} MiB, at most {MAX_BYTES >> 20}; its largest files: {named}")
    unfinished.replace(out)
    tests = sum(map(len, manifest["tests"].values()))
    files = f"{len(manifest['files'])} files, {len(manifest['tests'])} test binaries with {tests} tests"
    print(f"{out}: {size / (1 << 20):.1f} MiB, {files}, commit {manifest['commit']}")
    return 0
