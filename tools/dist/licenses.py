#!/usr/bin/env python3
"""Licences of the crates that are linked into the rigel binary, for those who pass it on.

    tools/dist/licenses.py > THIRD-PARTY.txt

Follows the normal dependencies of `rigel` with its default features in `cargo metadata`, and prints every licence file
of theirs once, under the names of the crates that have it.
"""

import json
import subprocess
import sys
from pathlib import Path

NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")


def linked(metadata: dict) -> list[dict]:
    """Packages whose code is in the binary, but those of this workspace."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    own = set(metadata["workspace_members"])
    found: set[str] = set()
    todo = [member for member in own if packages[member]["name"] == "rigel"]
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            package = packages[dependency["pkg"]]
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            # A procedural macro runs in the compiler; its code stays there.
            macro = any("proc-macro" in target["kind"] for target in package["targets"])
            if normal and not macro and package["id"] not in found:
                found.add(package["id"])
                todo.append(package["id"])
    return sorted((packages[name] for name in found - own), key=lambda package: (package["name"], package["version"]))


def texts(package: dict) -> list[str]:
    folder = Path(package["manifest_path"]).parent
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name.upper().startswith(NAMES))
    return [file.read_text(encoding="utf-8", errors="replace").strip() for file in files]


def main() -> int:
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = linked(metadata)
    if not packages:
        print("error: cargo metadata names no dependencies of rigel", file=sys.stderr)
        return 1
    by_text: dict[str, list[str]] = {}
    print("The rigel binary contains these crates and Rust's standard library (MIT OR Apache-2.0):\n")
    for package in packages:
        name = f"{package['name']} {package['version']}"
        print(f"  {name}: {package['license'] or 'see its licence file'}")
        for text in texts(package):
            by_text.setdefault(text, []).append(name)
    for text, names in by_text.items():
        print(f"\n{'=' * 80}\n{', '.join(names)}\n{'=' * 80}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
