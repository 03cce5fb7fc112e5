"""The runner, on processes that stand for tests and benches.

    python3 tools/gpu_check/test_run.py
"""

import json
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
TOOLS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOOLS), str(TOOLS / "peers")]

import report
from gpu_check import run, stages, summary

WRITES = """
import json, sys, time
rows = []
for number in range(int(sys.argv[1])):
    rows.append({"suite": "kernels", "name": f"row {number}", "by": "rigel"})
    whole = {"rows": rows, "ceilings": [{"limit": "bytes", "by": "rigel", "per_second": 1.0, "how": ""}], "invalid": []}
    open(sys.argv[-1], "w").write(json.dumps(whole))
    time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


class Run(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.addCleanup(setattr, run, "LEAST_SECONDS", run.LEAST_SECONDS)
        run.LEAST_SECONDS = 0.2

    def result(self):
        return run.Result(self.folder / "result.json", report.cpu_device(), self.folder)

    def read(self):
        return json.loads((self.folder / "result.json").read_text())

    def python(self, key, code, *arguments, seconds=30.0, **fields):
        return stages.Item(key, [sys.executable, "-c", code, *arguments], seconds, **fields)

    def noting(self, name, code, seconds=30.0):
        """Notes in a file that it ran, then does what the code says."""
        noted = f"open({str(self.folder / 'ran')!r}, 'a').write({name!r} + ' ');"
        return self.python(f"tests/{name}", noted + code, seconds=seconds, judge=stages.judge_test(name, name))

    def writer(self, key, rows, pause, code, seconds=30.0):
        part = self.folder / (key.replace("/", ".") + ".json")
        return self.python(key, WRITES, str(rows), str(pause), str(code), str(part), seconds=seconds, part=part)

    def stage(self, *items, jobs=1):
        return stages.Stage("tests", "", list(items), jobs)

    def statuses(self):
        return {key: item["status"] for key, item in self.read()["gpu_check"]["items"].items()}

    def test_rows_say_what_passed_and_what_failed(self):
        items = [
            self.noting("good", "print('test result: ok. 1 passed')"),
            self.noting("bad", "print(\"thread 'x' panicked at a.rs:1:\\nleft is 3\"); raise SystemExit(101)"),
            self.noting("not there", "print('test result: ok. 0 passed')"),
            self.noting("unable", "print('unable: skipped on a GPU\\n1 passed')"),
        ]
        run.run_stage(self.result(), self.stage(*items, jobs=2), 60)
        rows = {row["name"]: row for row in self.read()["rows"]}
        passed = {name: row.get("values", {}).get("passed") for name, row in rows.items()}
        self.assertEqual(passed, {"good": 1.0, "bad": 0.0, "not there": 0.0, "unable": None})
        self.assertIn("left is 3", rows["bad"]["marks"][0])
        self.assertIn("skipped", rows["unable"]["missing"])
        self.assertEqual(self.statuses()["tests/not there"], "failed")
        self.assertIn("left is 3", (self.folder / "result.log").read_text())

    def test_what_overruns_is_killed_with_all_that_it_started(self):
        alive = self.folder / "alive"
        child = f"import time, pathlib; time.sleep(2.5); pathlib.Path({str(alive)!r}).write_text('')"
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        run.run_stage(self.result(), self.stage(self.noting("slow", code, seconds=1.0)), 60)
        time.sleep(2.5)
        self.assertFalse(alive.exists())
        self.assertEqual(self.statuses(), {"tests/slow": "timed out"})
        self.assertEqual(self.read()["rows"][0]["values"]["passed"], 0.0)

    def test_it_goes_on_where_it_stopped(self):
        items = lambda: [self.noting(name, "print('1 passed')") for name in ("a", "b")]
        first = self.stage(*items()[:1], self.noting("b", "import time; time.sleep(60)"))
        # The whole call has less time than the second item would.
        run.run_stage(self.result(), first, run.LEAST_SECONDS + 1.5)
        self.assertEqual(self.statuses(), {"tests/a": "done", "tests/b": "unfinished"})
        again = self.result()
        run.run_stage(again, self.stage(*items()), 60)
        self.assertEqual(self.statuses(), {"tests/a": "done", "tests/b": "done"})
        self.assertEqual((self.folder / "ran").read_text(), "a b b ")
        self.assertEqual([row["name"] for row in self.read()["rows"]], ["a", "b"])
        self.assertEqual(summary.exit_code(again, [self.stage(*items())]), 0)

    def test_what_never_fits_a_call_is_given_up(self):
        item = self.noting("long", "import time; time.sleep(60)")
        for expected in ("unfinished", "unfinished", "timed out"):
            run.run_stage(self.result(), self.stage(item), run.LEAST_SECONDS + 0.5)
            self.assertEqual(self.statuses(), {"tests/long": expected})

    def test_rows_of_commands_are_kept_as_they_come(self):
        failing, slow, whole = (
            self.writer("kernels/failing", 2, 0, 1),
            self.writer("kernels/slow", 50, 0.3, 0, seconds=4.0),
            self.writer("kernels/whole", 3, 0, 0),
        )
        run.run_stage(self.result(), self.stage(failing, slow, whole), 60)
        found, items = self.read(), self.read()["gpu_check"]["items"]
        self.assertEqual(self.statuses()["kernels/failing"], "failed")
        self.assertEqual(self.statuses()["kernels/slow"], "timed out")
        counts = [items[f"kernels/{name}"]["rows"] for name in ("failing", "slow", "whole")]
        self.assertEqual((counts[0], counts[2]), (2, 3))
        self.assertTrue(1 <= counts[1] < 50, counts)
        self.assertEqual(len(found["rows"]), sum(counts))
        self.assertEqual(len(found["ceilings"]), 3)
        # Read again and written again, it is the same.
        before = found
        self.result().write()
        self.assertEqual(self.read()["rows"], before["rows"])
        self.assertEqual(self.read()["gpu_check"], before["gpu_check"])

    def test_an_interruption_keeps_what_was_measured(self):
        item = self.writer("kernels/long", 100, 0.2, 0)
        result, times = self.result(), iter([0.1] * 15)

        class Interrupted(Exception):
            pass

        def tick(seconds):
            real(next(times, None) or (_ for _ in ()).throw(Interrupted()))

        real, run.time.sleep = time.sleep, tick
        try:
            with self.assertRaises(Interrupted):
                run.run_stage(result, self.stage(item), 60)
        finally:
            run.time.sleep = real
        self.assertEqual(self.statuses(), {"kernels/long": "unfinished"})
        self.assertGreaterEqual(len(self.read()["rows"]), 1)

    def test_what_is_missing_is_said_and_tried_on_another_machine(self):
        item = self.writer("kernels/peer", 1, 0, 0)
        item.missing = "no peers: python3 has no PyTorch"
        run.run_stage(self.result(), self.stage(item), 60)
        self.assertEqual(self.read()["rows"][0]["missing"], item.missing)
        item.missing = None
        run.run_stage(self.result(), self.stage(item), 60)
        self.assertEqual(self.statuses(), {"kernels/peer": "done"})
        self.assertEqual(len(self.read()["rows"]), 1)

    def test_what_later_items_need_is_made_once_on_each_machine(self):
        made = self.folder / "checkpoint"
        item = lambda: self.noting("a", f"open({str(made)!r}, 'w'); print('1 passed')")
        for expected in ("a ", "a ", "a a "):
            needed = item()
            needed.makes = made
            run.run_stage(self.result(), self.stage(needed), 60)
            self.assertEqual((self.folder / "ran").read_text(), expected)
            self.assertEqual(self.statuses(), {"tests/a": "done"})
            if expected == "a " and len(self.read()["rows"]) == 0:
                made.unlink()  # as on another machine

    def test_a_program_that_is_not_there_fails(self):
        item = stages.Item("kernels/none", ["/nowhere/rigel"], 30)
        run.run_stage(self.result(), self.stage(item), 60)
        self.assertEqual(self.statuses(), {"kernels/none": "failed"})


if __name__ == "__main__":
    unittest.main()
