"""Writes crates/rigel-nano/README.md: model_card.md with the figures of the reports that the other scripts left.

    python tools/nano/card.py crates/rigel-nano/model --corpus WORK/corpus.json --train WORK/state/train.json
"""

import argparse
import json
from pathlib import Path

from safetensors import safe_open


def parameters(weights):
    with safe_open(weights, "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)


def mark(yes):
    return "yes" if yes else "no"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, help="corpus.json, as corpus.py writes it")
    parser.add_argument("--train", type=Path, required=True, help="train.json, as train.py writes it")
    args = parser.parse_args()
    report = json.loads((args.model / "eval.json").read_text(encoding="utf-8"))
    corpus, train = json.loads(args.corpus.read_text()), json.loads(args.train.read_text())
    kept, dropped = corpus["kept"], corpus["dropped"]
    refused = dropped.pop("package without a permissive licence in its metadata", 0)
    spent = sum(train["documents"].values())
    rows = report["prompts"]
    text = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8").format(
        parameters=parameters(args.model / "model.safetensors"),
        eval=report,
        train={**train, "cpu_hours": train["cpu_seconds"] / 3600, "clock_hours": train["clock_seconds"] / 3600},
        corpus={
            "packages": corpus["packages"],
            "refused": refused,
            "files": sum(n for name, n in kept.items() if name.endswith("files")),
            "megabytes": sum(n for name, n in kept.items() if name.endswith("bytes")) / 1e6,
        },
        shares=", ".join(f"{kind} {n / spent:.0%}" for kind, n in train["documents"].items()),
        dropped="; ".join(f"{reason} {n:,}" for reason, n in dropped.items()),
        prompts="\n".join(f"| `{r['prompt']}` | `{r['test']}` | {mark(r['passes'])} | {mark(r['verbatim'])} |" for r in rows),
        outputs="\n\n".join(f"```python\n{r['prompt']}{r['output'].rstrip()}\n```" for r in rows[:3]),
    )
    (args.model.parent / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
