"""Runs the tests of a check, which lie in one binary or in several: each command must pass as many as are said with it.

    python3 together.py '[{"passes": 1, "command": ["bin/tests/kernels", "--exact", "norm::layer_norm"]}, …]'
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def main(runs):
    wrong = 0
    for run in runs:
        done = subprocess.run(run["command"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace")
        print(done.stdout, end="", flush=True)
        # The binary's own is the last: a test of a kernel starts a process of its own, whose output is there too.
        ends = re.findall(r"^test result: \w+\. (\d+) passed", done.stdout, re.MULTILINE)
        passed = int(ends[-1]) if ends else 0
        if done.returncode or passed != run["passes"]:
            wrong += 1
            name = Path(run["command"][0]).name
            print(f"{name}: {passed} of {run['passes']} tests passed, exit code {done.returncode}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
