"""Made-up queries, keys and values that cluster as those of a video do: what a sparse call takes depends on that."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

HEAD_DIM = 128
DTYPE = torch.bfloat16
TOPICS, REGIONS = 300, 2000
# Shares of a query or key: its topic, what neighbours share, its own noise; their squares add up to 1. And the topic's in a value.
TOPIC, SHARED, NOISE = 0.7, 0.4, 0.59
VALUE_TOPIC = 0.7
# Tokens from one support of the field that neighbours share to the next.
SMOOTH = 64


def made_up(heads: int, tokens: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v ``[1, L, H * D]`` in bfloat16, as Wan hands them to attention, made head by head.

    The sequence falls into regions of random lengths, each of one topic; a topic shows in several regions, and some show more often.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    q, k, v = (torch.empty(1, tokens, heads, HEAD_DIM, device=device, dtype=DTYPE) for _ in range(3))
    for head in range(heads):
        topic_of_region = torch.multinomial(noise(TOPICS).exp(), REGIONS, replacement=True, generator=generator)
        ends = torch.rand(REGIONS - 1, generator=generator, device=device).mul(tokens).sort().values
        topics = topic_of_region[torch.searchsorted(ends, torch.arange(tokens, device=device, dtype=ends.dtype))]
        field = interpolate(noise(1, HEAD_DIM, max(2, tokens // SMOOTH)), size=tokens, mode="linear", align_corners=True)[0].T
        common = TOPIC * noise(TOPICS, HEAD_DIM)[topics] + SHARED * field / field.std()
        q[0, :, head] = common + NOISE * noise(tokens, HEAD_DIM)
        k[0, :, head] = common + NOISE * noise(tokens, HEAD_DIM)
        v[0, :, head] = VALUE_TOPIC * noise(TOPICS, HEAD_DIM)[topics] + math.sqrt(1 - VALUE_TOPIC**2) * noise(tokens, HEAD_DIM)
    return q.flatten(2), k.flatten(2), v.flatten(2)
