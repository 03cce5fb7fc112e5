"""The runner, on processes that stand for tests and benches.

    python3 tools/gpu_check/test_run.py
"""

import json
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
TOOLS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOOLS), str(TOOLS / "peers")]

import published
import report
from gpu_check import checks, run, stages, summary

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
        self.addCleanup(setattr, run, "MIN_SECONDS", run.MIN_SECONDS)
        run.MIN_SECONDS = 0.2

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
        run.run_stage(self.result(), first, run.MIN_SECONDS + 1.5)
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
            run.run_stage(self.result(), self.stage(item), run.MIN_SECONDS + 0.5)
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

    def check_items(self, manifest, root=None):
        places = stages.Places(root or self.folder, manifest, "python3", self.folder, self.folder, self.folder)
        return {item.key: item for item in stages.checks(places).items}

    def test_a_check_that_fails_says_what_to_do(self):
        check = checks.Check("two binaries", (("one", "first"), ("two", "second")), "mend it")
        self.addCleanup(setattr, checks, "CHECKS", checks.CHECKS)
        checks.CHECKS = (check,)
        made = self.check_items({"tests": {}, "ignored": {}})
        self.assertIn("no tests", made[checks.key(check.name)].missing)

        # Binaries that print as libtest does; the second has a test that fails.
        root = self.folder / "pack"
        (root / "bin/tests").mkdir(parents=True)
        (root / "tools").symlink_to(TOOLS)
        tests = {}
        for place, (binary, start) in enumerate(check.tests):
            tests[binary] = [f"{start}_one", f"{start}_two", "another"]
            said = "test {0}_one ... ok\ntest {0}_two ... {1}\ntest result: {2}\n".format(
                start, "FAILED" if place else "ok", "FAILED. 1 passed; 1 failed" if place else "ok. 2 passed; 0 failed"
            )
            program = root / "bin/tests" / binary
            program.write_text(f"#!/bin/sh\necho \"$@\" >> {self.folder}/called\ncat <<END\n{said}END\nexit {place * 101}\n")
            program.chmod(0o755)
        item = self.check_items({"tests": tests, "ignored": {}}, root)[checks.key(check.name)]
        run.run_stage(self.result(), self.stage(item), 60)
        row = self.read()["rows"][0]
        start = check.tests[1][1]
        self.assertEqual(row["values"]["passed"], 0.0)
        self.assertEqual(row["marks"], [f"failed: {start}_two; do: {check.otherwise}"])
        self.assertIn(check.otherwise, self.read()["gpu_check"]["items"][item.key]["note"])
        called = (self.folder / "called").read_text().splitlines()
        self.assertEqual(called[1], f"--exact {start}_one {start}_two --nocapture")

        (root / "bin/tests" / check.tests[1][0]).write_text("#!/bin/sh\necho 'test result: ok. 2 passed; 0 failed'\n")
        run.run_stage(self.result(), self.stage(item), 60, again=True)
        self.assertEqual(self.statuses(), {item.key: "done"})
        # Fewer than the manifest says, such as none, is no pass.
        (root / "bin/tests" / check.tests[1][0]).write_text("#!/bin/sh\necho 'test result: ok. 0 passed; 0 failed'\n")
        item.key = "checks/again"
        run.run_stage(self.result(), self.stage(item), 60)
        self.assertEqual(self.statuses()["checks/again"], "failed")

    def measure(self, mode, rows, *words, ncu=None):
        """measure.py with a `rigel` that writes these rows, by the first variable of the environment that has some."""
        rigel = self.folder / "rigel"
        code = f"""#!{sys.executable}
import json, os, sys
rows = {rows!r}
found = next((rows[key] for key in rows if key in os.environ), rows.get(sys.argv[1]))
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps({{"rows": found}}))
"""
        rigel.write_text(code)
        rigel.chmod(0o755)
        out = self.folder / "measured.json"
        line = [sys.executable, str(TOOLS / "gpu_check/measure.py"), mode, "--rigel", str(rigel), "--config", "x"]
        done = subprocess.run([*line, "--json", str(out), *words], capture_output=True, text=True)
        return done, json.loads(out.read_text())["rows"] if out.exists() else []

    @staticmethod
    def generated(us):
        return [{"suite": "model", "name": "tg64", "by": "rigel", "tokens": 64, "times": {"median_us": us * 64}}]

    def test_a_switch_that_is_faster_than_the_defaults_is_named(self):
        even = {"bench": self.generated(100.0)}
        done, rows = self.measure("switches", even)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual([row["by"] for row in rows][:2], ["rigel, defaults", "rigel, RIGEL_CUDA_PDL=0"])
        done, rows = self.measure("switches", {"RIGEL_CUDA_CARVEOUT": self.generated(90.0), **even})
        self.assertEqual(done.returncode, 1)
        self.assertIn("do: RIGEL_CUDA_CARVEOUT=100: 1.11 times as fast as the defaults", done.stderr)
        self.assertIn("1.11 times", rows[3]["marks"][0])

    def test_steps_that_cupti_slows_down_and_kernels_that_never_overlap_are_seen(self):
        launch = lambda gap: {"name": "decode launch", "path": "cupti", "values": {"gap_us": gap}, "times": {"median_us": 2}}
        step = {"name": "decode step", "path": "cupti", "times": {"median_us": 101.0}, "values": {}}
        rows = {"profile": [step, launch(-0.5), launch(0.3)], "bench": self.generated(100.0)}
        done, found = self.measure("cupti", rows)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(found[0]["values"]["early_starts"], 0.5)
        rows["profile"] = [step | {"times": {"median_us": 130.0}}, launch(0.1)]
        done, found = self.measure("cupti", rows)
        self.assertEqual(done.returncode, 1)
        for part in ("1.30 of their time", "no kernel starts before the one ahead has ended: RIGEL_CUDA_CARVEOUT=100"):
            self.assertIn(part, done.stderr)
        done, _ = self.measure("cupti", {"profile": [step | {"path": "events"}], "bench": self.generated(100.0)})
        self.assertIn("no CUPTI", done.stderr)

    def test_bytes_from_memory_are_held_against_those_declared(self):
        ncu = self.folder / "ncu"
        table = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        for launch in range(3):
            table += f'"{launch}","gemm_small_m_x","dram__bytes_read.sum","byte","1,000,000"\n'
            table += f'"{launch}","gemm_small_m_x","dram__bytes_write.sum","byte","20,000"\n'
        ncu.write_text(f"#!/bin/sh\necho '==PROF== Connected'\ncat <<END\n{table}END\n")
        ncu.chmod(0o755)
        gemm = lambda bytes: {"bench": [{"name": "gemm up_proj", "by": "rigel", "bytes": bytes}]}
        done, rows = self.measure("dram", gemm(1_000_000), "--ncu", str(ncu))
        self.assertEqual((done.returncode, rows[0]["values"]["ratio"]), (0, 1.02), done.stderr)
        done, _ = self.measure("dram", gemm(700_000), "--ncu", str(ncu))
        self.assertEqual(done.returncode, 1)
        self.assertIn("1.46 times the declared bytes", done.stderr)

    def test_attention_stands_beside_cudnn_flash_and_what_was_published(self):
        shape = {"length": 8192, "heads": 48}
        timed = lambda by, us: {"name": "attention_prefill", "by": by, "flops": 600_000_000, "times": {"median_us": us}}
        rows = [timed("rigel", 1.0) | {"shape": shape, "model": "15b"}, timed("torch sdpa cudnn", 2.0) | {"shape": shape}]
        rows += [timed("rigel", 1.0) | {"shape": shape | {"window": 4096}}]
        rows += list(published.rows())
        self.assertEqual(
            list(summary.attention(rows)),
            [
                "attention_prefill 15b length 8192, TFLOP/s: rigel 600, torch sdpa cudnn 300, no torch sdpa flash, "
                "FlashAttention-3 (published) 602"
            ],
        )
        for row in published.rows():
            self.assertTrue(row["by"].endswith("(published)") and "not measured here" in row["marks"][0], row)

    def test_a_program_that_is_not_there_fails(self):
        item = stages.Item("kernels/none", ["/nowhere/rigel"], 30)
        run.run_stage(self.result(), self.stage(item), 60)
        self.assertEqual(self.statuses(), {"kernels/none": "failed"})


if __name__ == "__main__":
    unittest.main()
