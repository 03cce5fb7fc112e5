"""Trains models/nano with transformers' own Starcoder2ForCausalLM on the CPU, for a given number of minutes.

    python tools/nano/train.py models/nano --minutes 45

The learning rate follows the share of the time that has passed, so the run ends annealed on a machine of any speed.
The model is exported to the output folder at every checkpoint; a killed run goes on with `--resume`.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Starcoder2Config, Starcoder2ForCausalLM

import data

ROWS, LENGTH = 8, 512
PEAK_RATE, WARM_UP = 2e-3, 0.02
CHECKPOINT_MINUTES = 4

# The keys, and their order, are those of the published starcoder2 configs. `tie_word_embeddings` is absent there
# too: absent means true.
CONFIG = {
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "embedding_dropout": 0.0,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 2048,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "residual_dropout": 0.0,
    "rope_theta": 10000.0,
    "sliding_window": 128,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.0.dev0",
    "use_bias": True,
    "use_cache": True,
    "vocab_size": 4096,
}
GENERATION_CONFIG = {
    "_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0, "transformers_version": "4.37.0.dev0",
}


def build(seed):
    torch.manual_seed(seed)
    model = Starcoder2ForCausalLM._from_config(Starcoder2Config(**CONFIG), attn_implementation="eager", dtype=torch.float32)
    check_window(model)
    return model


@torch.no_grad()
def check_window(model):
    """One layer must see exactly the keys at distance 0 … sliding_window-1; some versions of transformers did not."""
    window, layers = CONFIG["sliding_window"], model.model.layers
    ids = torch.arange(1, 2 * window + 1)[None]
    changed = ids.clone()
    changed[0, 0] = 2000
    model.model.layers = layers[:1]
    model.config.num_hidden_layers, kept = 1, model.config.num_hidden_layers
    moved = (model(ids, use_cache=False).logits != model(changed, use_cache=False).logits).any(-1)[0]
    model.model.layers, model.config.num_hidden_layers = layers, kept
    assert moved[:window].all() and not moved[window:].any(), "the sliding window is not d <= W-1"


def loss_of(model, block, bf16=True):
    block = torch.tensor(block)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(block[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), block[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model, blocks):
    model.eval()
    loss = sum(loss_of(model, block).item() for block in blocks) / len(blocks)
    model.train()
    return loss


def export(model, out):
    """Writes the weights in bf16, with the checkpoint's own names; whole files only, by rename."""
    tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)  # tied to the embedding
    assert all(value.isfinite().all() for value in tensors.values())
    save_file(tensors, out / "model.safetensors.part", metadata={"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")
    for name, value in (("config.json", CONFIG), ("generation_config.json", GENERATION_CONFIG)):
        (out / name).write_text(json.dumps(value, indent=2) + "\n")


def rate_at(passed):
    """Warm-up, then a straight line to zero."""
    return PEAK_RATE * min(passed / WARM_UP, (1 - passed) / (1 - WARM_UP))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model's folder; tokenizer.json must be there")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--state", type=Path, default=Path("target/nano/state.pt"), help="checkpoint with optimizer state")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.state.parent.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    train, held = data.read_corpus()
    model = build(args.seed)
    decay = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=PEAK_RATE, betas=(0.9, 0.95), fused=True,
    )
    step, spent = 0, 0.0
    if args.resume:
        state = torch.load(args.state, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]

    # A resumed run deals from a fresh shuffle rather than replaying the stream.
    batches = data.blocks(data.Documents(train, args.seed + step).token_stream(tokenizer), ROWS, LENGTH + 1)
    held_stream = data.blocks(data.Documents(held, 0).token_stream(tokenizer), ROWS, LENGTH + 1)
    held_blocks = [next(held_stream) for _ in range(6)]

    params = sum(p.numel() for p in model.parameters())
    print(f"{params} parameters, {len(train)} training files, {len(held)} held out", flush=True)
    budget, started = args.minutes * 60, time.monotonic() - spent
    model.train()
    last_checkpoint, average = spent, None
    while True:
        spent = time.monotonic() - started
        done = spent >= budget
        if done or spent - last_checkpoint > CHECKPOINT_MINUTES * 60:
            export(model, args.out)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
            torch.save(state, args.state)
            last_checkpoint = spent
            print(f"checkpoint: step {step}, held-out mix {held_out_loss(model, held_blocks):.4f}", flush=True)
        if done:
            break
        rate = rate_at(spent / budget)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step == 10 or step % 50 == 0:
            tokens = step * ROWS * LENGTH
            print(f"step {step} tokens {tokens} seconds {spent:.0f} rate {rate:.2e} loss {average:.4f}", flush=True)
    log = {
        "steps": step, "tokens": step * ROWS * LENGTH, "seconds": round(spent), "threads": args.threads,
        "parameters": params, "final_training_loss": round(average, 4),
    }
    args.state.with_suffix(".json").write_text(json.dumps(log, indent=2) + "\n")
    print(log)


if __name__ == "__main__":
    main()
