#!/usr/bin/env python3
"""Which systems a Linux program starts on: reads the libraries and the symbol versions that its ELF file asks for.

    tools/dist/check_symbols.py [--glibc 2.28] FILE...

Prints the newest version of each kind (GLIBC_2.28, GCC_4.2.0 …) and fails where a file needs a newer glibc, or a library
that not every distribution has.
"""

import argparse
import struct
import sys
from pathlib import Path

# Part of glibc, or in every distribution's first package (libgcc_s unwinds after a panic).
LIBRARIES = {
    "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "ld-linux-x86-64.so.2",
    "libgcc_s.so.1",
}  # fmt: skip

# Section types (System V ABI, chapter 4; Linux Standard Base, symbol versioning).
SHT_DYNAMIC = 6
SHT_GNU_VERNEED = 0x6FFFFFFE
DT_NEEDED = 1


class NotElf(Exception):
    """What is wrong with the file."""


def needs(data: bytes) -> tuple[list[str], dict[str, list[str]]]:
    """Libraries that a 64-bit little-endian ELF file needs, and for each library the symbol versions."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise NotElf("not a 64-bit little-endian ELF file")
    try:
        (offset,) = struct.unpack_from("<Q", data, 0x28)
        size, count = struct.unpack_from("<HH", data, 0x3A)
        sections = [struct.unpack_from("<IIQQQQII", data, offset + index * size) for index in range(count)]
        libraries: list[str] = []
        versions: dict[str, list[str]] = {}
        for _, kind, _, _, start, length, link, info in sections:
            if kind == SHT_DYNAMIC:
                entries = struct.iter_unpack("<QQ", data[start : start + length])
                libraries += [text(data, sections[link][4] + value) for tag, value in entries if tag == DT_NEEDED]
            elif kind == SHT_GNU_VERNEED:
                versions |= version_needs(data, start, info, sections[link][4])
    except (struct.error, IndexError) as error:
        raise NotElf(f"its tables do not lie inside the file ({error})") from error
    return libraries, versions


def version_needs(data: bytes, at: int, files: int, strings: int) -> dict[str, list[str]]:
    """The chain of `files` Verneed records at `at`, each with a chain of Vernaux records."""
    needed: dict[str, list[str]] = {}
    for _ in range(files):
        _, count, file, first, following = struct.unpack_from("<HHIII", data, at)
        names = needed.setdefault(text(data, strings + file), [])
        entry = at + first
        for _ in range(count):
            _, _, _, name, next_entry = struct.unpack_from("<IHHII", data, entry)
            names.append(text(data, strings + name))
            entry += next_entry
        at += following
    return needed


def text(data: bytes, at: int) -> str:
    end = data.find(b"\0", at)
    if end < 0:
        raise NotElf("a name has no end")
    return data[at:end].decode()


def newest(names: list[str]) -> dict[str, tuple[int, ...]]:
    """Of `GLIBC_2.2.5`, `GLIBC_2.14`, `GCC_3.0` the largest version of each kind."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        kind, _, version = name.rpartition("_")
        parts = version.split(".")
        # GLIBC_PRIVATE and the like have no number: they hold on one build of the library alone.
        number = tuple(map(int, parts)) if all(part.isdigit() for part in parts) else (sys.maxsize,)
        found[kind] = max(found.get(kind, ()), number)
    return found


def complaints(data: bytes, glibc: tuple[int, ...]) -> tuple[str, list[str]]:
    """What the file needs, in words, and what of it is too much."""
    libraries, versions = needs(data)
    wrong = [f"needs {library}, which not every system has" for library in libraries if library not in LIBRARIES]
    words = []
    kinds = newest([name for names in versions.values() for name in names])
    for kind, number in sorted(kinds.items()):
        version = "PRIVATE" if number == (sys.maxsize,) else ".".join(map(str, number))
        words.append(f"{kind}_{version}")
        if kind == "GLIBC" and number > glibc:
            limit = ".".join(map(str, glibc))
            late = {name for names in versions.values() for name in names if newest([name]).get("GLIBC", ()) > glibc}
            wrong.append(f"needs {', '.join(sorted(late))}; {limit} is the newest allowed")
    return f"{' '.join(sorted(libraries))}; {' '.join(words) or 'no versions'}", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--glibc", default="2.28", help="the newest glibc that may be needed (default: %(default)s)")
    arguments = parser.parse_args()
    limit = tuple(map(int, arguments.glibc.split(".")))
    failed = False
    for file in arguments.files:
        try:
            said, wrong = complaints(file.read_bytes(), limit)
        except (NotElf, OSError) as error:
            said, wrong = None, [str(error)]
        if said:
            print(f"{file}: {said}")
        for line in wrong:
            print(f"error: {file}: {line}", file=sys.stderr)
        failed |= bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
