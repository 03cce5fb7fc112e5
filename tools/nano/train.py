"""Trains crates/rigel-nano/model on the CPU, for a given number of CPU hours of this process.

    python tools/nano/train.py crates/rigel-nano/model --corpus WORK/corpus.jsonl --state WORK/state --cpu-hours 5

The learning rate follows the share of the CPU time that is spent, so the run ends annealed on a machine of any speed
and may share it with other work. The state is saved every few minutes and on SIGTERM or SIGINT; the same command goes
on from it. The weights are written to `--state`, and to the model's folder only when the budget is spent.
"""

import argparse
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import data
import model as network
from muon import Muon

ROWS, LENGTH = 16, 512
MUON_RATE, ADAM_RATE, WARM_UP = 0.02, 3e-3, 0.02
CHECKPOINT_SECONDS = 240  # by the clock
HELD_OUT_ROWS = 48

GENERATION_CONFIG = {
    "_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0, "transformers_version": "4.37.0.dev0",
}


def optimizers(model):
    """Muon for the layers' matrices, AdamW for the embedding, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    biases = [p for p in model.parameters() if p.ndim != 2]
    embedding = {"params": [model.model.embed_tokens.weight], "weight_decay": 0.01}
    adam = [embedding, {"params": biases, "weight_decay": 0.0}]
    return [
        Muon(matrices, lr=MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(adam, lr=ADAM_RATE, betas=(0.9, 0.95), fused=True),
    ]


def rate_at(passed):
    """The share of the peak rate: warm-up, then a straight line to zero."""
    return min(passed / WARM_UP, (1 - passed) / (1 - WARM_UP))


@torch.no_grad()
def held_out_loss(model, rows):
    """nats per token of plain held-out source, without the overlap of evaluate.py: a little too high."""
    with torch.autocast("cpu", torch.bfloat16):
        return sum(model.loss(part).item() * len(part) for part in rows.split(ROWS)) / len(rows)


def export(model, out):
    """Writes the weights in bf16, with the checkpoint's own names; whole files only, by rename."""
    tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    assert all(value.isfinite().all() for value in tensors.values())
    save_file(tensors, out / "model.safetensors.part", metadata={"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")
    for name, value in (("config.json", network.CONFIG), ("generation_config.json", GENERATION_CONFIG)):
        (out / name).write_text(json.dumps(value, indent=2) + "\n")


class Run:
    """All that a checkpoint holds: the model, its optimizers, the stream of rows, and what was spent."""

    def __init__(self, args, corpus):
        torch.manual_seed(args.seed)
        self.path = args.state / "state.pt"
        self.model = network.Nano()
        network.check(self.model)
        self.optimizers = optimizers(self.model)
        tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
        self.rows = data.Rows(data.Documents(corpus, args.seed), tokenizer, ROWS, LENGTH)
        self.step, self.cpu, self.clock, self.average = 0, 0.0, 0.0, None
        self.reader, block = ThreadPoolExecutor(1), None
        if self.path.exists():
            block = self.restore(torch.load(self.path, weights_only=False))
        # The next block is made while this one is learnt.
        self.block = self.reader.submit(lambda: block or self.rows.next())

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.rows.restore(state["rows"])
        for name in ("step", "cpu", "clock", "average"):
            setattr(self, name, state[name])
        return state.get("block")

    def save(self, cpu, clock):
        state = {
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "block": self.block.result(), "rows": self.rows.state(), "step": self.step, "cpu": cpu, "clock": clock, "average": self.average,
        }
        torch.save(state, self.path.with_suffix(".part"))
        os.replace(self.path.with_suffix(".part"), self.path)

    def train_step(self, share):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * (MUON_RATE if isinstance(optimizer, Muon) else ADAM_RATE)
        block = torch.tensor(self.block.result())
        self.block = self.reader.submit(self.rows.next)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model.loss(block)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        loss = loss.item()
        self.average = loss if self.average is None else 0.98 * self.average + 0.02 * loss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model's folder; tokenizer.json must be there")
    parser.add_argument("--corpus", type=Path, required=True, help="corpus.jsonl, as corpus.py writes it")
    parser.add_argument("--state", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--cpu-hours", type=float, default=5)
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="end early, after this many CPU minutes")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.state.mkdir(parents=True, exist_ok=True)
    stopped = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.append(True))

    corpus, held = data.load(args.corpus)
    run = Run(args, corpus)
    ids = [i for text in held.values() for i in run.rows.tokenizer.encode(data.EOT + text).ids]
    held_rows = torch.tensor([ids[i : i + LENGTH + 1] for i in range(0, len(ids) - LENGTH, LENGTH)])
    held_rows = held_rows[:: max(1, len(held_rows) // HELD_OUT_ROWS)][:HELD_OUT_ROWS]
    run.model.forward = torch.compile(run.model.forward, dynamic=False)
    network.softmax_gradient = torch.compile(network.softmax_gradient, dynamic=False)
    # Reading the corpus is not training: the budget begins here.
    budget, began, cpu_began = args.cpu_hours * 3600, time.monotonic(), run.cpu - time.process_time()
    saved = began
    print(f"from step {run.step}, {run.cpu:.0f} CPU seconds of {budget:.0f}", flush=True)
    while True:
        now = time.monotonic()
        cpu, clock = cpu_began + time.process_time(), run.clock + now - began
        done = cpu >= budget
        if done or stopped or cpu - run.cpu > args.stop_after * 60 or now - saved > CHECKPOINT_SECONDS:
            run.save(cpu, clock)
            export(run.model, args.state)
            saved = now
            print(f"checkpoint: step {run.step} held-out {held_out_loss(run.model, held_rows):.4f}", flush=True)
            if done or stopped or cpu - run.cpu > args.stop_after * 60:
                break
        run.train_step(rate_at(min(1.0, cpu / budget)))
        if run.step == 5 or run.step % 50 == 0:
            tokens = run.step * ROWS * LENGTH
            print(f"step {run.step} tokens {tokens} cpu {cpu:.0f} ({cpu / budget:.1%}) clock {clock:.0f} "
                  f"loss {run.average:.4f}", flush=True)
    log = {
        "steps": run.step, "tokens": run.step * ROWS * LENGTH, "cpu_seconds": round(cpu), "clock_seconds": round(clock),
        "finished": done, "threads": args.threads, "final_training_loss": round(run.average, 4), "documents": run.rows.documents.emitted,
    }
    (args.state / "train.json").write_text(json.dumps(log, indent=2) + "\n")
    print(log)
    if done:
        export(run.model, args.out)


if __name__ == "__main__":
    main()
