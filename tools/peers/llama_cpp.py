"""llama.cpp as a peer of `rigel bench model` on a CPU: the same bf16 weights, the same threads.

    rigel synth models/configs/starcoder2-3b.json --out checkpoint       # or any bf16 StarCoder2 checkpoint
    python3 tools/peers/llama_cpp.py --model checkpoint --threads 2 --json out.json
    python3 tools/peers/llama_cpp.py --model checkpoint --score sequences.json

The first run builds llama.cpp from the source distribution of llama-cpp-python (PyPI) in a virtual environment of its
own, which takes a C++ compiler and about a quarter of an hour of two cores. The checkpoint is written as GGUF once more,
beside itself: matrices in bf16, norms and biases in f32, as llama.cpp's own converter does it; no tokenizer. Rows are named
as llama-bench names them, and timed as it times them: pp is one call with the whole prompt, tg a call for each token.
With --score nothing is timed: the log-probabilities of given token ids are printed (tools/peers/correctness.py).
"""

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
import report

# The package has this file's name: it is to be found, not this file.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE.parent]

# Written into the environment last, when all of it is there.
STAMP = "llama-cpp-ready"
DTYPES = {"BF16": "uint16", "F32": "float32"}
GLOBAL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


class Refused(Exception):
    """Why it cannot run, in one line."""


def environment(folder):
    """A Python with llama.cpp in it; built where there is none."""
    python = folder / "bin/python"
    if (folder / STAMP).exists():
        return python
    print(f"llama_cpp: building llama.cpp in {folder} (a quarter of an hour, once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "numpy", "gguf"], check=True)
    # The processor's own instructions, as Rigel uses them; nothing but the library.
    flags = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF"}
    words = [*install, "--no-binary", "llama-cpp-python", "llama-cpp-python"]
    subprocess.run(words, check=True, env=os.environ | flags)
    (folder / STAMP).write_text("")
    return python


def gguf_name(name):
    """The tensor's name in GGUF."""
    stem, kind = name.rsplit(".", 1)
    if stem in GLOBAL_NAMES:
        return f"{GLOBAL_NAMES[stem]}.{kind}"
    parts = stem.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[3] in LAYER_NAMES:
        return f"blk.{parts[2]}.{LAYER_NAMES[parts[3]]}.{kind}"
    raise Refused(f"{name}: no tensor of StarCoder2")


def tensors(directory):
    """Name, shape and elements of every tensor of a checkpoint: float32, or bf16 as u16."""
    import numpy

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise Refused(f"{directory}: no .safetensors files; make a checkpoint with rigel synth")
    for path in files:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(mapped[:8], "little")
        for name, entry in json.loads(mapped[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise Refused(f"{path}: {name} is {entry['dtype']}, expected BF16 or F32; make one with --dtype bf16")
            first, last = entry["data_offsets"]
            dtype = numpy.dtype(DTYPES[entry["dtype"]])
            count = (last - first) // dtype.itemsize
            elements = numpy.frombuffer(mapped, dtype=dtype, count=count, offset=8 + length + first)
            yield name, entry["shape"], elements


def convert(directory, target):
    """Writes the checkpoint as GGUF."""
    import gguf
    import numpy

    config = json.loads((directory / "config.json").read_text())
    if config.get("model_type") != "starcoder2":
        raise Refused(f"{directory}/config.json: model_type is {config.get('model_type')!r}, expected 'starcoder2'")
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    unfinished = target.with_name(target.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, "starcoder2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_eps(config["norm_epsilon"])
    if config.get("sliding_window"):
        # Other architectures' key. llama.cpp does not read it for StarCoder2 (0.3.36): it is there for the day it does.
        writer.add_sliding_window(config["sliding_window"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    file_type = gguf.LlamaFileType.ALL_F32
    for name, shape, elements in tensors(directory):
        if elements.dtype == numpy.float32:
            writer.add_tensor(gguf_name(name), elements.reshape(shape))
        elif len(shape) == 1:
            wide = (elements.astype(numpy.uint32) << 16).view(numpy.float32)
            writer.add_tensor(gguf_name(name), wide)
        else:
            rows = elements.reshape(shape).view(numpy.uint8)
            writer.add_tensor(gguf_name(name), rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
            file_type = gguf.LlamaFileType.MOSTLY_BF16
    writer.add_file_type(file_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(target)


class Llama:
    """A model and a context, and no tokenizer."""

    def __init__(self, path, context, threads, exact=False):
        """With `exact` keys and values stay float32, and attention is not fused."""
        import llama_cpp

        self.library = llama_cpp
        # Its report on loading; kept, for a context must not outlive it.
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        wanted = llama_cpp.llama_model_default_params()
        wanted.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), wanted)
        if not self.model:
            raise Refused(f"{path}: llama.cpp does not load it")
        room = llama_cpp.llama_context_default_params()
        room.n_ctx, room.n_batch, room.n_ubatch = context, 2048, 512
        room.n_threads = room.n_threads_batch = threads
        if exact:
            room.type_k = room.type_v = llama_cpp.GGML_TYPE_F32
            room.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, room)
        if not self.context:
            raise Refused(f"{path}: llama.cpp makes no context of {context} tokens")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def clear(self):
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def decode(self, ids):
        for first in range(0, len(ids), 2048):
            part = ids[first : first + 2048]
            array = (self.library.llama_token * len(part))(*part)
            code = self.library.llama_decode(self.context, self.library.llama_batch_get_one(array, len(part)))
            if code:
                raise Refused(f"llama_decode returned {code}")
        self.library.llama_synchronize(self.context)

    def log_probabilities(self, ids, chunk):
        """Of every token but the first, with `chunk` tokens a call."""
        import numpy

        self.clear()
        scores, batch = [], self.library.llama_batch_init(chunk, 0, 1)
        for first in range(0, len(ids) - 1, chunk):
            part = ids[first : min(first + chunk, len(ids) - 1)]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, first + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            code = self.library.llama_decode(self.context, batch)
            if code:
                raise Refused(f"llama_decode returned {code}")
            for i in range(len(part)):
                row = numpy.ctypeslib.as_array(self.library.llama_get_logits_ith(self.context, i), (self.vocabulary,))
                row = row.astype(numpy.float64) - row.max()
                scores.append(float(row[ids[first + i + 1]] - numpy.log(numpy.exp(row).sum())))
        self.library.llama_batch_free(batch)
        return scores


def tokens(count, vocabulary):
    """Any tokens: the time does not depend on which."""
    return [(i * 7919 + 11) % vocabulary for i in range(count)]


def timed(work):
    before = time.perf_counter()
    work()
    return (time.perf_counter() - before) * 1e6


def measure(llama, options, vocabulary):
    """Name, tokens and samples of each benchmark, as they come."""
    for length in options.prompts:
        prompt, samples = tokens(length, vocabulary), []
        for _ in range(options.repetitions + 1):
            llama.clear()
            samples.append(timed(lambda: llama.decode(prompt)))
        yield f"pp{length}", length, samples[1:]  # the first is a warm-up
    for depth in options.depths if options.new else []:
        samples, new = [], tokens(options.new, vocabulary)
        for _ in range(options.repetitions):
            llama.clear()
            llama.decode(tokens(depth, vocabulary) if depth else new[:1])  # warms up, too
            if not depth:
                llama.clear()
            samples.append(timed(lambda: [llama.decode([token]) for token in new]))
        yield f"tg{options.new}" + (f" @ d{depth}" if depth else ""), options.new, samples


def converted(options):
    """The checkpoint as GGUF; written where there is none."""
    target = options.gguf or options.model / "model.bf16.gguf"
    if not target.exists():
        print(f"llama_cpp: writing {target}", file=sys.stderr)
        convert(options.model, target)
    return target


def score(options):
    sequences = json.loads(options.score.read_text())
    context = (max(map(len, sequences)) + 255) // 256 * 256
    llama = Llama(converted(options), context, options.threads, exact=True)
    print(json.dumps([llama.log_probabilities(ids, options.chunk) for ids in sequences]))


def bench(options):
    import llama_cpp

    directory = options.model
    target = converted(options)
    config = json.loads((directory / "config.json").read_text())
    context = max([*options.prompts, *(depth + options.new for depth in options.depths)])
    llama = Llama(target, (context + 255) // 256 * 256, options.threads)
    result = report.begin(report.cpu_device())
    path = f"llama-cpp-python {llama_cpp.__version__}, bf16, {options.threads} threads"
    for name, count, samples in measure(llama, options, config["vocab_size"]):
        fields = {"tokens": count, "times": report.times(samples), "path": path}
        model = options.name or directory.resolve().name
        result["rows"].append(report.row("model", name, "llama.cpp", model=model, shape={"batch": 1}, **fields))
        if options.json:
            report.write(result, options.json)
        print(f"{name}: {count / fields['times']['median_us'] * 1e6:.2f} tokens/s; {path}", flush=True)


def parse():
    def numbers(text):
        return [int(word) for word in text.split(",") if word]

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="bf16 checkpoint directory")
    add("--name", help="the model's name in the result [the directory's]")
    add("--gguf", type=Path, help="where its GGUF lies or goes [model.bf16.gguf in it]")
    add("--threads", type=int, default=os.cpu_count(), help="[all cores: %(default)s]")
    add("-p", "--prompts", type=numbers, default=[512], help="prompts to time [512]")
    add("-n", "--new", type=int, default=32, help="tokens to generate [%(default)s]")
    add("-d", "--depths", type=numbers, default=[0], help="tokens before the generated ones [0]")
    add("-r", "--repetitions", type=int, default=5, help="[%(default)s]")
    add("--json", help="write the result there, row by row")
    add("--score", type=Path, help="score the sequences of ids in this file of JSON, and time nothing")
    add("--chunk", type=int, default=512, help="with --score, tokens a call [%(default)s]")
    add("--venv", type=Path, default=HERE.parents[2] / "target/llama-cpp", help="its environment [%(default)s]")
    options = parser.parse_args()
    if not (options.model / "config.json").exists():
        raise Refused(f"--model {options.model}: no config.json there; make a checkpoint with rigel synth")
    return options


def main():
    options = parse()
    if Path(sys.prefix) != options.venv.resolve():
        python = environment(options.venv.resolve())
        os.execv(python, [str(python), str(HERE), *sys.argv[1:]])
    score(options) if options.score else bench(options)


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError) as error:
        sys.exit(f"llama_cpp: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"llama_cpp: {error.cmd[0]} ended with {error.returncode}; its errors are above")
