"""What kernels.py must be: the generator bit for bit, and results that float64 agrees with.

    python3 tools/peers/test_kernels.py

On a GPU where there is one, else on the CPU with fewer peers.
"""

import json
import struct
import unittest

import kernels
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def lowbias32(x):
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def value(seed, index, centre, spread):
    """The generator's definition, in integers and single roundings."""
    bits = lowbias32(index ^ lowbias32(seed))
    return f32(f32(f32(spread) * f32(2 * ((bits >> 8) * 2.0**-24) - 1)) + f32(centre))


def seeded(seed, shape, kind):
    count = 1
    for length in shape:
        count *= length
    return torch.tensor([value(seed, i, *kind) for i in range(count)], dtype=torch.float64).view(shape)


@torch.no_grad()
def ask(server, **request):
    reply = server.answer(json.dumps(request))
    assert "error" not in reply, reply
    return reply


class Generator(unittest.TestCase):
    def test_published_values(self):
        # The same as in src/model/random.rs.
        for seed, index, kind, expected in [
            (0, 0, (0.0, 1.0), 0xBF800000),
            (1, 0, (0.0, 1.0), 0xBE9C2ADC),
            (7, 5, (1.0, 0.1), 0x3F72F138),
        ]:
            found = kernels.fill(torch.empty(6, device=DEVICE), seed, kind)[index].item()
            self.assertEqual(struct.unpack("I", struct.pack("f", found))[0], expected)
            self.assertEqual(found, value(seed, index, *kind))
        tensor = kernels.fill_parameter(torch.empty(12346, device=DEVICE), 42, "model.layers.3.mlp.c_fc.weight")
        self.assertEqual(struct.unpack("I", struct.pack("f", tensor[12345].item()))[0], 0xBC36EA46)

    def test_every_value_of_every_kind(self):
        for seed in (3, 0xFFFFFFFF):
            for kind in (kernels.ACTIVATIONS, kernels.WEIGHTS, kernels.BIASES, kernels.GAINS):
                found = kernels.fill(torch.empty(2000, device=DEVICE), seed, kind).double().cpu()
                self.assertTrue(torch.equal(found, seeded(seed, (2000,), kind)))

    def test_chunks_meet(self):
        last = (1 << 26) + 3 if DEVICE.type == "cuda" else (1 << 20) + 3
        found = kernels.fill(torch.empty(last + 1, device=DEVICE), 5, kernels.WEIGHTS)[last].item()
        self.assertEqual(found, value(5, last, *kernels.WEIGHTS))


class Results(unittest.TestCase):
    """Every peer that is there, against float64 on the generator's own values."""

    def held(self, expected, **request):
        server = kernels.Server(DEVICE)
        with torch.no_grad():
            reply = ask(server, do="prepare", dtype="f16", sets=2, seed=9, **request)
            self.assertTrue(reply["peers"], reply)
            for by in reply["peers"]:
                found = ask(server, do="check", by=by)
                self.assertEqual(found["shape"], list(expected.shape), by)
                absolutes = expected.abs().sum().item()
                self.assertAlmostEqual(found["sum_of_absolutes"], absolutes, delta=2e-3 * absolutes, msg=by)
                self.assertAlmostEqual(found["sum"], expected.sum().item(), delta=2e-3 * absolutes, msg=by)
                times = ask(server, do="time", by=by, budget_us=500)
                self.assertTrue(min(times["samples_us"]) > 0, by)
        return reply

    def rounded(self, number, shape, kind):
        return seeded(9 + number, shape, kind).half().double()

    def test_linear(self):
        x, w = self.rounded(0, (8, 64), kernels.ACTIVATIONS), self.rounded(1, (32, 64), kernels.WEIGHTS)
        bias, residual = self.rounded(2, (32,), kernels.BIASES), self.rounded(3, (8, 32), kernels.ACTIVATIONS)
        product = x @ w.T
        for epilogue, expected in [
            ("none", product),
            ("bias", product + bias),
            ("bias_gelu", torch.nn.functional.gelu(product + bias, approximate="tanh")),
            ("bias_residual", product + bias + residual),
        ]:
            self.held(expected, kind="linear", epilogue=epilogue, rows=8, columns=32, depth=64)

    def attended(self, q, k, v, window):
        """q [b, s, h, d]; k, v [b, t, kv, d]; the last query sits at the last key."""
        group, offset = q.shape[2] // k.shape[2], k.shape[1] - q.shape[1]
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        scores = torch.einsum("bshd,bthd->bhst", q, k) * q.shape[3] ** -0.5
        distance = torch.arange(q.shape[1])[:, None] + offset - torch.arange(k.shape[1])
        seen = (distance >= 0) & (distance < (window or k.shape[1]))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("bhst,bthd->bhsd", weights, v)

    def test_attention(self):
        for window in (None, 40):
            q = self.rounded(0, (2, 128, 4, 64), kernels.ACTIVATIONS)
            k, v = (self.rounded(number, (2, 128, 2, 64), kernels.ACTIVATIONS) for number in (1, 2))
            sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "window": window}
            expected = self.attended(q, k, v, window)
            found = self.held(expected, kind="attention_prefill", length=128, **sizes)
            self.assertEqual([by for by in found["peers"] if "sdpa" in by] == [], window is not None)
            q = self.rounded(0, (2, 1, 4, 64), kernels.ACTIVATIONS)
            self.held(self.attended(q, k, v, window), kind="attention_decode", context=128, **sizes)

    def test_norm(self):
        x, residual = self.rounded(0, (4, 96), kernels.ACTIVATIONS), self.rounded(3, (4, 96), kernels.ACTIVATIONS)
        gains, biases = self.rounded(1, (96,), kernels.GAINS), self.rounded(2, (96,), kernels.BIASES)
        for residual, adds in ((residual, True), (torch.zeros_like(x), False)):
            expected = torch.nn.functional.layer_norm(x + residual, (96,), gains, biases, 1e-5)
            self.held(expected, kind="norm", rows=4, width=96, residual=adds)

    def test_embed(self):
        table = self.rounded(1, (50, 16), kernels.WEIGHTS)
        ids = [lowbias32(i ^ lowbias32(9)) % 50 for i in range(7)]
        self.held(table[ids], kind="embed", rows=7, vocabulary=50, width=16)


class Refusals(unittest.TestCase):
    def test_each_is_one_line_and_the_next_request_is_served(self):
        server = kernels.Server(DEVICE)
        for request, part in [
            ("nonsense", "Expecting value"),
            ("[]", "do is None"),
            ('{"do": "time", "by": "torch", "budget_us": 1}', "nothing is prepared"),
            ('{"do": "prepare", "kind": "linear", "rows": 0}', "rows is 0"),
            ('{"do": "prepare", "kind": "conv"}', "expected one of linear"),
            ('{"do": "prepare", "kind": "linear", "dtype": "f8"}', "dtype is 'f8'"),
        ]:
            error = server.answer(request)["error"]
            self.assertIn(part, error)
            self.assertNotIn("\n", error)
        self.assertIn("versions", server.answer('{"do": "hello"}'))


if __name__ == "__main__":
    unittest.main()
