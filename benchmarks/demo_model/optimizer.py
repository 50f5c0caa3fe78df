"""Muon for the transformer blocks' matrices: momentum whose singular values are made equal before it is applied."""

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices, steps=5):
    """Bring the singular values of ``matrices [G, rows, columns]`` near 1 by Newton-Schulz iterations in bf16."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).type_as(matrices)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Matrices of one shape are updated as one batch. The update is scaled to the size that AdamW's has at the same rate
    (a root mean square of 0.2), so that both can share a learning-rate schedule.
    """

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                gradients = torch.stack([parameter.grad for parameter in parameters])
                state = self.state[parameters[0]]
                if not state:
                    state["momentum"] = torch.zeros_like(gradients)
                momentum = state["momentum"].lerp_(gradients, 1 - group["momentum"])
                update = orthogonalise(gradients.lerp(momentum, group["momentum"]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(update.unbind()), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])
