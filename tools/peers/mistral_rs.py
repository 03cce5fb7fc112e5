"""Log-probabilities from mistral.rs' StarCoder2, on a CPU in float32. `correctness.py` runs it, in an environment that has
the package `mistralrs`:

    python mistral_rs.py CHECKPOINT SEQUENCES prompt|tokens

SEQUENCES is a file of JSON, a list of lists of token ids; of a vocabulary in which id 17 is written <17>. Printed are token
ids and the log-probability of every one but the first, of as many sequences. The package takes no ids to score. So with
`prompt` each position is the end of a prompt of its own, and the ids are those given; every eighth position and the last are
asked for, the others are null. With `tokens` it samples as many ids itself, after the first one given.
"""

import json
import os
import re
import sys

# The cache of a CPU is in f16 otherwise, whatever the dtype.
os.environ["MISTRALRS_CPU_KV_F32"] = "1"
import mistralrs


def ask(runner, ids, count, vocabulary):
    """Its answer of `count` tokens: ids, and every id's log-probability at each of them."""
    request = mistralrs.ChatCompletionRequest(
        messages="".join(f"<{i}>" for i in ids),
        model="default",
        logprobs=True,
        top_logprobs=vocabulary,
        max_tokens=count,
        temperature=1.0,
        ignore_eos=True,
    )
    response = runner.send_chat_completion_request(request)
    if response.usage.prompt_tokens != len(ids):
        sys.exit(f"{response.usage.prompt_tokens} tokens in a prompt of {len(ids)}")
    entries = response.choices[0].logprobs.content
    tables = [{top.token: top.logprob for top in entry.top_logprobs} for entry in entries]
    return [int(re.fullmatch("<([0-9]+)>", entry.token)[1]) for entry in entries], tables


def main():
    checkpoint, file, mode = sys.argv[1:]
    sequences = json.load(open(file))
    vocabulary = json.load(open(checkpoint + "/config.json"))["vocab_size"]
    which = mistralrs.Which.Plain(
        model_id=checkpoint, arch=mistralrs.Architecture.Starcoder2, dtype=mistralrs.ModelDType.F32
    )
    runner = mistralrs.Runner(which, prefix_cache_n=0, no_paged_attn=True)
    result = {"ids": [], "logprobs": []}
    for ids in sequences:
        if mode == "prompt":
            last = len(ids) - 2
            asked = [i % 8 == 7 or i == last for i in range(last + 1)]
            tables = [ask(runner, ids[: i + 1], 1, vocabulary)[1][0] if yes else {} for i, yes in enumerate(asked)]
        else:
            answer, tables = ask(runner, ids[:1], len(ids) - 1, vocabulary)
            ids = [ids[0], *answer]
        pairs = zip(tables, ids[1:], strict=True)
        result["ids"].append(ids)
        result["logprobs"].append([table[token] if table else None for table, token in pairs])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
