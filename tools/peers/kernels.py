"""PyTorch's kernels as peers: times what `rigel bench kernels --peers PYTHON` asks for, on the same inputs.

    python3 tools/peers/kernels.py

One JSON request a line on stdin, one JSON reply a line on stdout; whatever else wants to print goes to stderr. Needs
PyTorch and nothing beside this file: `rigel` carries its text and hands it to the interpreter that the user names.

    {"do": "hello"}                                   versions, device, cuda
    {"do": "ceiling", "limit": "bytes" | "flops"}     measured: [{per_second, how}]
    {"do": "prepare", "kind": …, "dtype": "bf16" | "f16" | "f32", "sets": N, "seed": S, …sizes}
                                                      peers: [name], missing: [{by, why}]
    {"do": "time", "by": name, "budget_us": N}        samples_us: [µs of one call], path
    {"do": "check", "by": name}                       sum, sum_of_absolutes (float64), shape
    {"do": "release"}                                 {}

kinds and their sizes:

    linear             rows, columns, depth, epilogue: none | bias | bias_gelu | bias_residual
    attention_prefill  batch, length, heads, kv_heads, head_dim, window (null: none)
    attention_decode   batch, context, heads, kv_heads, head_dim, window (null: none)
    norm               rows, width, residual (default true): LayerNorm of x + residual, epsilon 1e-5
    embed              rows, vocabulary, width

Inputs are those of the shared generator (`fill`), element by element in the order of a row-major matrix: x [rows, depth],
weights [columns, depth], q, k, v [batch · tokens, heads · head_dim]. Operand i has the seed S + i: x, weights, bias,
residual; q, k, v; for norm x, gains, biases, residual; for embed ids, table. x, q, k, v and residuals lie in ±1, the rest
as in a checkpoint (`WEIGHTS`, `BIASES`, `GAINS`). Token i is the generator's 32 bits modulo the vocabulary.

A request that cannot be served gets {"error": "…"}, and the next one is read.
"""

import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F

ACTIVATIONS, WEIGHTS, BIASES, GAINS = (0.0, 1.0), (0.0, 0.035), (0.0, 0.02), (1.0, 0.1)  # centre, range
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
# A sample no shorter than this: events are a microsecond or two apart where nothing lies between them.
MIN_SAMPLE_US = 400.0
MAX_SAMPLES = 200


# The generator ------------------------------------------------------------------------------------------------------


def mixed(x):
    """lowbias32 on int64 tensors that hold u32: products wrap modulo 2^64, which keeps their low 32 bits."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def bits(seed, first, count, device):
    """The generator's 32 bits at `first .. first + count`."""
    index = torch.arange(first, first + count, dtype=torch.int64, device=device)
    return mixed(index ^ mixed(torch.tensor(seed & 0xFFFFFFFF, dtype=torch.int64)).item())


def fill(tensor, seed, kind):
    """Fills a contiguous tensor with `centre + range (2u - 1)`, u the upper 24 bits of its element's 32. In float32,
    product and sum rounded one after the other, then rounded to the tensor's dtype."""
    centre, spread = kind
    flat = tensor.view(-1)
    chunk = 1 << 26 if tensor.is_cuda else 1 << 20  # eight bytes of work for each element
    for first in range(0, flat.numel(), chunk):
        count = min(chunk, flat.numel() - first)
        unit = (bits(seed, first, count, tensor.device) >> 8).float().mul_(2.0**-24)
        flat[first : first + count] = unit.mul_(2.0).sub_(1.0).mul_(spread).add_(centre)
    return tensor


def fnv1a(name):
    """FNV-1a of 32 bits."""
    state = 0x811C9DC5
    for byte in name.encode():
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state


def fill_parameter(tensor, user_seed, name):
    """A checkpoint's tensor of that name: norms' gains about 1, small biases, matrices of standard deviation 0.02."""
    kind = BIASES if name.endswith(".bias") else GAINS if name.endswith("norm.weight") else WEIGHTS
    return fill(tensor, user_seed ^ fnv1a(name), kind)


# Timing -------------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """A request that cannot be served, in one line."""


def one_line(error):
    text = str(error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]


def rotated(call, sets, count, first=0):
    for i in range(count):
        call((first + i) % sets)


def elapsed_us(work, repeats):
    """The time of each of `repeats` runs of `work`, by events: all are queued before any is waited for."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) * 1000 for before, after in zip(events, events[1:])]


def samples_cuda(call, sets, budget_us):
    """Microseconds of one call, and how they were taken."""
    rotated(call, sets, max(3, sets))
    torch.cuda.synchronize()
    estimate = min(elapsed_us(lambda: rotated(call, sets, sets), 2)) / sets
    if estimate >= MIN_SAMPLE_US:
        count = max(3, min(MAX_SAMPLES, int(budget_us / estimate)))
        at = iter(range(count))
        return elapsed_us(lambda: call(next(at) % sets), count), f"one call a sample over {sets} inputs"
    # Short ones in a graph, else it is the launches that are timed. Whole rotations: each replay begins as the last.
    for attempt in range(2):  # the first estimate may be that of the launches
        rotations = max(1, math.ceil(MIN_SAMPLE_US / estimate / sets))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rotated(call, sets, rotations * sets)
        elapsed_us(graph.replay, 2)
        estimate = min(elapsed_us(graph.replay, 3)) / (rotations * sets)
        if rotations * sets * estimate >= MIN_SAMPLE_US / 2:
            break
    calls = rotations * sets
    count = max(5, min(MAX_SAMPLES, int(budget_us / (calls * estimate))))
    samples = [sample / calls for sample in elapsed_us(graph.replay, count)]
    return samples, f"graph of {calls} calls over {sets} inputs"


def samples_cpu(call, sets, budget_us):
    rotated(call, sets, 2)
    samples, start = [], time.perf_counter()
    while len(samples) < 3 or ((time.perf_counter() - start) * 1e6 < budget_us and len(samples) < MAX_SAMPLES):
        before = time.perf_counter()
        call(len(samples) % sets)
        samples.append((time.perf_counter() - before) * 1e6)
    return samples, f"one call a sample over {sets} inputs"


def samples_of(call, sets, budget_us, device):
    return (samples_cuda if device.type == "cuda" else samples_cpu)(call, sets, budget_us)


# What is timed ------------------------------------------------------------------------------------------------------


class Prepared:
    """Inputs of one shape, `sets` copies of them, and who can do something with them."""

    def __init__(self, request, device):
        self.device = device
        self.dtype = DTYPES.get(request.get("dtype", "bf16"))
        if self.dtype is None:
            raise Refused(f"dtype is {request['dtype']!r}, expected one of {', '.join(DTYPES)}")
        self.sets = max(1, int(request.get("sets", 1)))
        self.seed = int(request.get("seed", 0))
        self.calls, self.how, self.missing = {}, {}, []

    def operand(self, number, shape, kind):
        return fill(torch.empty(shape, dtype=self.dtype, device=self.device), self.seed + number, kind)

    def copies(self, tensor):
        return [tensor] + [tensor.clone() for _ in range(self.sets - 1)]

    def add(self, by, how, call):
        """A peer, if it does its work once. A kernel that is not there says so when it is called."""
        try:
            call(0)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError as error:
            self.missing.append({"by": by, "why": "out of memory: " + one_line(error)})
        except Exception as error:  # of many types: no kernel, no compiler, a shape refused
            self.missing.append({"by": by, "why": one_line(error)})
        else:
            self.calls[by], self.how[by] = call, how


def size(request, name):
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Refused(f"{request.get('kind')}: {name} is {value!r}, expected a whole number of at least 1")
    return value


def linear(request, device):
    it = Prepared(request, device)
    rows, columns, depth = (size(request, name) for name in ("rows", "columns", "depth"))
    epilogue = request.get("epilogue", "none")
    x = it.copies(it.operand(0, (rows, depth), ACTIVATIONS))
    w = it.copies(it.operand(1, (columns, depth), WEIGHTS))
    bias = it.operand(2, (columns,), BIASES)
    if epilogue == "none":
        it.add("torch cublas", "F.linear", lambda i: F.linear(x[i], w[i]))
    elif epilogue == "bias":
        it.add("torch cublas", "F.linear with bias", lambda i: F.linear(x[i], w[i], bias))
    elif epilogue == "bias_gelu":
        two = lambda i: F.gelu(F.linear(x[i], w[i], bias), approximate="tanh")
        it.add("torch cublas", "F.linear with bias, then F.gelu", two)
        if device.type == "cuda":  # elsewhere it computes another GELU
            fused = lambda i: torch._addmm_activation(bias, x[i], w[i].t(), use_gelu=True)
            it.add("torch cublaslt gelu", "_addmm_activation: bias and GELU in cublasLt's epilogue", fused)
    elif epilogue == "bias_residual":
        residual = it.copies(it.operand(3, (rows, columns), ACTIVATIONS))
        it.add("torch cublas", "F.linear with bias, then add_", lambda i: F.linear(x[i], w[i], bias).add_(residual[i]))
    else:
        raise Refused(f"epilogue is {epilogue!r}, expected none, bias, bias_gelu or bias_residual")
    return it


SDPA = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}


def sdpa(backend, q, k, v, **options):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, SDPA[backend])):
        return F.scaled_dot_product_attention(q, k, v, **options)


def flex(length, keys, window, device):
    """Compiled FlexAttention where query i sits at key `keys - length + i`, with a window or without."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    offset, window = keys - length, window or keys

    def visible(batch, head, query, key):
        distance = query + offset - key
        return (distance >= 0) & (distance < window)

    mask = create_block_mask(visible, None, None, length, keys, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def attention_sizes(request, tokens):
    names = ("batch", tokens, "heads", "kv_heads", "head_dim")
    batch, length, heads, kv_heads, head_dim = (size(request, name) for name in names)
    if heads % kv_heads:
        raise Refused(f"heads is {heads}, expected a multiple of kv_heads, {kv_heads}")
    window = size(request, "window") if request.get("window") is not None else None
    return batch, length, heads, kv_heads, head_dim, window if window and window < length else None


def repeated(tensor, group):
    return tensor.repeat_interleave(group, dim=1)


def attention_prefill(request, device):
    it = Prepared(request, device)
    batch, length, heads, kv_heads, head_dim, window = attention_sizes(request, "length")

    def operand(number, heads):
        rows = it.operand(number, (batch, length, heads, head_dim), ACTIVATIONS)
        return [copy.transpose(1, 2) for copy in it.copies(rows)]  # [batch, heads, length, head_dim], as a model has it

    q, k, v = operand(0, heads), operand(1, kv_heads), operand(2, kv_heads)
    for backend in SDPA:
        by = f"torch sdpa {backend}"
        if window:
            it.missing.append({"by": by, "why": "SDPA has no window"})
            continue
        grouped = lambda i, b=backend: sdpa(b, q[i], k[i], v[i], is_causal=True, enable_gqa=True)
        it.add(by, "is_causal, enable_gqa", grouped)
        if by not in it.calls:
            refusal, group = it.missing.pop(), heads // kv_heads
            try:
                wide = [[repeated(copy, group) for copy in copies] for copies in (k, v)]
            except torch.cuda.OutOfMemoryError as error:
                it.missing.append({"by": by, "why": "out of memory: " + one_line(error)})
                continue
            alone = lambda i, b=backend, kv=wide: sdpa(b, q[i], kv[0][i], kv[1][i], is_causal=True)
            it.add(by, "is_causal, K and V repeated for every query head beforehand", alone)
            if by not in it.calls:
                it.missing[-1]["why"] += f"; with enable_gqa: {refusal['why']}"
    add_flex(it, q, k, v, length, length, window)
    return it


def add_flex(it, q, k, v, length, keys, window):
    try:
        attend = flex(length, keys, window, it.device)
    except Exception as error:
        it.missing.append({"by": "torch flex", "why": one_line(error)})
        return
    how = f"compiled flex_attention, causal, window {window}" if window else "compiled flex_attention, causal"
    it.add("torch flex", how, lambda i: attend(q[i], k[i], v[i]))


def attention_decode(request, device):
    it = Prepared(request, device)
    batch, context, heads, kv_heads, head_dim, window = attention_sizes(request, "context")
    group = heads // kv_heads

    def cached(number):
        rows = it.operand(number, (batch, context, kv_heads, head_dim), ACTIVATIONS)
        return it.copies(rows.transpose(1, 2).contiguous())  # as a static cache has it

    q = it.copies(it.operand(0, (batch, 1, heads, head_dim), ACTIVATIONS).transpose(1, 2))
    k, v = cached(1), cached(2)
    # A window of the newest keys is a slice of the cache.
    seen = slice(context - window, context) if window else slice(None)
    keys, values = [copy[:, :, seen] for copy in k], [copy[:, :, seen] for copy in v]
    # One query row sees every key, so the heads of a group may stand as rows of one head.
    folded = [copy.reshape(batch, kv_heads, group, head_dim) for copy in q]
    for backend in SDPA:
        grouped = lambda i, b=backend: sdpa(b, q[i], keys[i], values[i], enable_gqa=True)
        it.add(f"torch sdpa {backend}", "one query row, enable_gqa", grouped)
        rows = lambda i, b=backend: sdpa(b, folded[i], keys[i], values[i]).view(batch, heads, 1, head_dim)
        it.add(f"torch sdpa {backend} folded", "query heads of a KV head as rows", rows)
    if device.type == "cuda":
        add_flex(it, q, keys, values, 1, window or context, None)
    return it


def norm(request, device):
    it = Prepared(request, device)
    rows, width = size(request, "rows"), size(request, "width")
    x = it.copies(it.operand(0, (rows, width), ACTIVATIONS))
    gains, biases = it.operand(1, (width,), GAINS), it.operand(2, (width,), BIASES)
    normalise = lambda x: F.layer_norm(x, (width,), gains, biases, 1e-5)
    if request.get("residual", True):
        residual = it.copies(it.operand(3, (rows, width), ACTIVATIONS))

        def both(x, residual):
            total = x + residual
            return normalise(total), total  # the sum is the next residual

        arguments, how = lambda i: (x[i], residual[i]), "add, then F.layer_norm"
    else:
        both, arguments, how = normalise, lambda i: (x[i],), "F.layer_norm"
    it.add("torch", how, lambda i: both(*arguments(i)))
    compiled = torch.compile(both, dynamic=False)
    it.add("torch compile", how + ", compiled into one kernel", lambda i: compiled(*arguments(i)))
    return it


def embed(request, device):
    it = Prepared(request, device)
    rows, vocabulary, width = (size(request, name) for name in ("rows", "vocabulary", "width"))
    table = it.operand(1, (vocabulary, width), WEIGHTS)
    # Other tokens in each set: the table itself is what the caches must not hold.
    ids = [bits(it.seed, number * rows, rows, device) % vocabulary for number in range(it.sets)]
    it.add("torch", "F.embedding", lambda i: F.embedding(ids[i], table))
    return it


KINDS = {f.__name__: f for f in (linear, attention_prefill, attention_decode, norm, embed)}


# The server ---------------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, device):
        self.device = device
        self.prepared = None

    def hello(self, request):
        versions = {"python": sys.version.split()[0], "torch": torch.__version__}
        cuda = self.device.type == "cuda"
        if cuda:
            versions["cuda"] = torch.version.cuda
            versions["cudnn"] = str(torch.backends.cudnn.version())
        try:
            import triton

            versions["triton"] = triton.__version__
        except Exception:  # no Triton, or one that does not load: nothing is compiled then
            pass
        device = torch.cuda.get_device_name(self.device) if cuda else "cpu"
        return {"versions": versions, "device": device, "cuda": cuda}

    def ceiling(self, request):
        limit, cuda = request.get("limit"), self.device.type == "cuda"
        budget = int(request.get("budget_us", 300_000))
        self.release({})

        def rate(amount, call):
            samples = sorted(samples_of(lambda _: call(), 1, budget, self.device)[0])
            return amount / (samples[len(samples) // 2] * 1e-6)

        if limit == "bytes":
            most = torch.cuda.mem_get_info(self.device)[0] // 3 if cuda else 1 << 28
            count = min(1 << 32, most) // (1 << 20) << 20
            text = f"{count / (1 << 30):g} GiB"
            # Random: zeros keep the memory's wires still.
            source = fill(torch.empty(count // 4, dtype=torch.float32, device=self.device), 0, ACTIVATIONS)
            target = torch.empty_like(source)
            measured = [
                {"per_second": rate(2 * count, lambda: target.copy_(source)), "how": f"copy_ of {text}, read + written"},
                {"per_second": rate(count, source.sum), "how": f"sum of {text}"},
            ]
        elif limit == "flops":
            n = 8192 if cuda else 512
            operand = lambda number: fill(torch.empty(n, n, dtype=torch.bfloat16, device=self.device), number, ACTIVATIONS)
            a, b = operand(0), operand(1)
            out = torch.empty_like(a)
            per_second = rate(2 * n**3, lambda: torch.matmul(a, b, out=out))
            measured = [{"per_second": per_second, "how": f"bf16 {n} x {n} x {n}"}]
        else:
            raise Refused(f"limit is {limit!r}, expected bytes or flops")
        return {"measured": measured}

    def prepare(self, request):
        self.release({})
        kind = KINDS.get(request.get("kind"))
        if kind is None:
            raise Refused(f"kind is {request.get('kind')!r}, expected one of {', '.join(KINDS)}")
        self.prepared = kind(request, self.device)
        return {"peers": list(self.prepared.calls), "missing": self.prepared.missing}

    def call(self, request):
        it = self.prepared
        if it is None:
            raise Refused("nothing is prepared; ask for prepare first")
        by = request.get("by")
        if by not in it.calls:
            raise Refused(f"by is {by!r}, expected one of {', '.join(it.calls) or 'nothing: every peer is missing'}")
        return it, by, it.calls[by]

    def time(self, request):
        it, by, call = self.call(request)
        samples, how = samples_of(call, it.sets, size(request | {"kind": "time"}, "budget_us"), self.device)
        return {"samples_us": samples, "path": f"{it.how[by]}; {how}"}

    def check(self, request):
        _, _, call = self.call(request)
        result = call(0)
        result = result[0] if isinstance(result, tuple) else result
        sums = [0.0, 0.0]
        for part in result.reshape(-1).split(1 << 26):
            part = part.double()
            sums[0] += part.sum().item()
            sums[1] += part.abs().sum().item()
        return {"sum": sums[0], "sum_of_absolutes": sums[1], "shape": list(result.shape)}

    def release(self, request):
        self.prepared = None
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return {}

    def answer(self, line):
        try:
            request = json.loads(line)
            do = request.get("do") if isinstance(request, dict) else None
            if do not in ("hello", "ceiling", "prepare", "time", "check", "release"):
                raise Refused(f"do is {do!r}, expected hello, ceiling, prepare, time, check or release")
            return getattr(self, do)(request)
        except torch.cuda.OutOfMemoryError as error:
            self.prepared = None
            torch.cuda.empty_cache()
            return {"error": "out of memory: " + one_line(error)}
        except Exception as error:  # whatever a library throws: the next request may well be served
            return {"error": one_line(error)}


@torch.no_grad()
def main():
    # Replies have the descriptor to themselves; compilers and libraries print to stderr.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server = Server(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(server.answer(line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
