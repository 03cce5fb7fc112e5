"""Figures that others have published, as rows beside those that are measured. Each says so, and where it is from.

    python3 tools/peers/published.py --json OUT
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

FLASH3 = "flash-attention, assets/flash3_fp16_fwd.png @0251105"
TRITONBENCH = "meta-pytorch/tritonbench PR 1254"
# Forward, head_dim 128, fp16, H100 SXM: by length, TFLOP/s over visible pairs.
CAUSAL = {1024: 423, 2048: 521, 4096: 579, 8192: 602, 16384: 616}
FULL = {1024: 541, 2048: 618, 4096: 628, 8192: 638.6}
# One request of 4096 positions, grouped queries, H100: microseconds.
DECODE = (13.8, "vllm-project/flash-attention PR 63")


def rows():
    by = "FlashAttention-3 (published)"

    def one(name, shape, values, source):
        marks = [f"published, not measured here: H100, {source}"]
        return report.row("kernels", name, by, shape=shape, values=values, marks=marks)

    for causal, figures, source in ((True, CAUSAL, FLASH3), (False, FULL, TRITONBENCH)):
        for length, tflops in figures.items():
            name = "attention_prefill" if causal else "attention_prefill, not causal"
            yield one(name, {"length": length, "head_dim": 128}, {"tflop_per_s": float(tflops)}, source)
    yield one("attention_decode", {"batch": 1, "context": 4096}, {"us": DECODE[0]}, DECODE[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True)
    report.write({"rows": list(rows()), "ceilings": [], "invalid": []}, parser.parse_args().json)


if __name__ == "__main__":
    main()
