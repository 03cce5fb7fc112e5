"""The table at the end of a run."""

FAILURES = 20


def line(text):
    print(text, flush=True)


def entries(result, stage):
    return [result.items.get(item.key, {"status": "left"}) for item in stage.items]


def count(found, *statuses):
    return sum(entry["status"] in statuses for entry in found)


def table(head, rows):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    pad = lambda row: "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |"
    return [pad(head), "| " + " | ".join("-" * width for width in widths) + " |", *map(pad, rows)]


def figures(rows):
    """What one wants to know first, one line each."""
    for row in rows:
        values = row.get("values", {})
        if row["suite"] == "parity" and "mean_ratio" in values:
            yield (
                f"parity {row.get('model')}: mean {values['mean_ratio']:.2f}, 99th percentile"
                f" {values['p99_ratio']:.2f} of transformers' own over {values['tokens']} tokens"
            )
        if row["suite"] == "model" and row.get("times") and row.get("tokens"):
            rate = row["tokens"] / row["times"]["median_us"] * 1e6
            share = f", {row['of_limit']:.0%} of its limit" if row.get("of_limit") else ""
            batch = row.get("shape", {}).get("batch", 1)
            yield f"{row['name']} {row.get('model')} batch {batch} by {row['by']}: {rate:.1f} tokens/s{share}"


PEERS = ("torch sdpa cudnn", "torch sdpa flash")


def tflops(row):
    """Of a row that was measured, or of a published one."""
    if row.get("times") and row.get("flops"):
        return row["flops"] / row["times"]["median_us"] / 1e6
    return row.get("values", {}).get("tflop_per_s")


def attention(rows):
    """Prefill attention by length: ours, SDPA's cuDNN and flash by name, FlashAttention-3's published figures."""
    found = {}
    for row in rows:
        if row["name"] == "attention_prefill" and row.get("shape", {}).get("window") in (None, "none"):
            rate = tflops(row)
            if rate:
                found.setdefault(row["shape"].get("length"), {}).setdefault(row["by"], (rate, row.get("model")))
    for length, by in sorted(found.items()):
        if "rigel" not in by:
            continue
        cells = [f"rigel {by['rigel'][0]:.0f}"]
        cells += [f"{peer} {by[peer][0]:.0f}" if peer in by else f"no {peer}" for peer in PEERS]
        cells += [f"{who} {rate:.0f}" for who, (rate, _) in by.items() if who.endswith("(published)")]
        yield f"attention_prefill {by['rigel'][1] or ''} length {length}, TFLOP/s: {', '.join(cells)}"


def print_all(result, stages):
    """Failures, figures, then the table, last."""
    failures = [
        f"{key}: {entry['status']}: {entry['note']}"
        for key, entry in result.items.items()
        if entry["status"] in ("failed", "timed out")
    ]
    for text in failures[:FAILURES]:
        line("- " + " ".join(text.split())[:500])
    if len(failures) > FAILURES:
        line(f"- and {len(failures) - FAILURES} more, in the result")
    rows = [row for item in result.items.values() for row in item["rows"]]
    for text in [*figures(rows), *attention(rows)]:
        line("- " + text)
    for text in sorted({why for item in result.items.values() for why in item["invalid"]}):
        line("- invalid: " + text)
    lines = []
    for stage in stages:
        found = entries(result, stage)
        missing = count(found, "missing")
        done, failed, late = count(found, "done"), count(found, "failed"), count(found, "timed out")
        lines.append([stage.name, len(found), done, failed, late, missing, count(found, "left", "unfinished")])
    for text in table(["stage", "items", "done", "failed", "timed out", "missing", "left"], lines):
        line(text)


def exit_code(result, stages):
    found = [entry for stage in stages for entry in entries(result, stage)]
    if count(found, "failed", "timed out"):
        return 1
    return 4 if count(found, "left", "unfinished") else 0
