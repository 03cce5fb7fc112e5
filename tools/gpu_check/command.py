"""Arguments of tools/gpu-check."""

import argparse
import sys
from pathlib import Path

import report

from . import pack, run, stages, summary

EXAMPLES = """\
examples:
  tools/gpu-check pack rigel-gpu-check.tar.xz     where Rust is
  tar xf rigel-gpu-check.tar.xz && rigel-gpu-check/tools/gpu-check run     where the GPU is
  tools/gpu-check run --stage kernels --budget 300

exit codes of run:
  0 all is done and nothing failed; 1 something failed; 2 it cannot run; 3 no driver or no GPU; 4 not all is done: run it
  again, it goes on where it stopped
"""


def parser():
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.description = "Takes tests and benches to a GPU machine without Rust or network, and runs them there."
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="build, and pack what a GPU machine needs into one archive")
    packing.add_argument("out", type=Path, metavar="OUT.tar.xz")
    packing.add_argument("--no-build", action="store_true", help="pack what was built last")
    running = commands.add_parser("run", help="run it, where the GPU is")
    add = running.add_argument
    add("--out", type=Path, help="where the result goes, and is looked for to go on [benches/results]")
    add("--stage", choices=stages.NAMES, help="this one alone")
    add("--budget", type=float, default=520, metavar="SECONDS", help="end by then; run again to go on [%(default)s]")
    add("--python", default="python3", help="a Python with PyTorch and transformers [%(default)s]")
    add("--scratch", type=Path, help="folder for large files: a checkpoint of 6 GB [the system's]")
    add("--again", action="store_true", help="run again what failed or ran out of time")
    return parser


def main(root):
    options = parser().parse_args()
    try:
        if options.command == "pack":
            return pack.pack(root, options.out, build=not options.no_build)
        return run.run(root, options)
    except report.NoDriver as error:
        summary.line(f"{error}; run this where there is a GPU and its driver, 580 or newer")
        return 3
    except (pack.Refused, run.Refused) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
