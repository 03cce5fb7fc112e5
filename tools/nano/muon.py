"""Muon (Jordan et al., 2024): momentum whose update of a matrix is replaced by the nearest semi-orthogonal matrix."""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g):
    """Five Newton-Schulz iterations in bf16 over a stack of matrices, [count, m, n]; singular values end near 1."""
    a, b, c = COEFFICIENTS
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                stacks.setdefault(p.shape, []).append((p, p.grad.lerp(buffer, group["momentum"])))
            for shape, pairs in stacks.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (p, _), update in zip(pairs, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
