"""The Wan 2.1 text-to-video transformer in plain torch, with the original Wan parameter names.

Every size is an argument; the defaults are those of the demo model. A state dict of this class loads unchanged where
original Wan checkpoints load.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

HEAD_DIM = 128
PATCH = (1, 2, 2)
FREQUENCY_DIM = 256
ROPE_THETA = 10000.0
EPS = 1e-6


def time_features(time, dim):
    """Cosines and sines of ``time [B]`` (sigma * 1000) at ``dim / 2`` geometric frequencies; fp32 ``[B, dim]``."""
    exponent = torch.arange(dim // 2, device=time.device, dtype=torch.float32) / (dim // 2)
    angle = torch.outer(time.float(), ROPE_THETA**-exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def rope_table(grid, device):
    """Cosine and sine of every token's rotation angles for a ``(t, h, w)`` token grid.

    Each head's 64 channel pairs are shared out as 22 over time, 21 over rows and 21 over columns.
    Returns fp32 ``[2, 1, N, 1, 64]``, tokens in ``t, h, w`` order.
    """
    spatial = 2 * (HEAD_DIM // 6)
    dims = (HEAD_DIM - 2 * spatial, spatial, spatial)
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, dims)):
        exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim
        angle = torch.outer(torch.arange(length, device=device, dtype=torch.float64), ROPE_THETA**-exponent)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, -1))
    angle = torch.cat(angles, dim=-1).reshape(1, math.prod(grid), 1, HEAD_DIM // 2)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x, rope):
    """Apply rotary positions to ``x [B, N, H, 128]``; channel pairs are neighbours."""
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Projections and query/key normalisation over the full width, shared by self- and cross-attention."""

    def __init__(self, dim):
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=EPS)
        self.norm_k = nn.RMSNorm(dim, eps=EPS)

    def project(self, x, context):
        """Queries of ``x [B, N, C]``, keys and values of ``context [B, M, C]``, each ``[B, tokens, H, 128]``."""
        dtype = self.norm_q.weight.dtype
        q = self.norm_q(self.q(x).to(dtype)).unflatten(-1, (-1, HEAD_DIM))
        k = self.norm_k(self.k(context).to(dtype)).unflatten(-1, (-1, HEAD_DIM))
        v = self.v(context).unflatten(-1, (-1, HEAD_DIM))
        return q, k, v


class SelfAttention(Attention):
    """Attention among video tokens, with rotary positions."""

    def forward(self, x, rope):
        q, k, v = self.project(x, x)
        q, k = rotate(q, rope).type_as(v), rotate(k, rope).type_as(v)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o(out.transpose(1, 2).flatten(2))


class CrossAttention(Attention):
    """Attention from video tokens to conditioning tokens.

    Written as two products: with a handful of keys they cost nothing, and fused kernels are built for long rows.
    """

    def forward(self, x, context):
        q, k, v = self.project(x, context)
        logits = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * HEAD_DIM**-0.5
        out = logits.softmax(dim=-1).type_as(v) @ v.transpose(1, 2)
        return self.o(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, the first and last modulated by the time embedding."""

    def __init__(self, dim, ffn_dim):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.self_attn = SelfAttention(dim)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x, time, context, rope):
        """``x [B, N, C]``, ``time [B, 6, C]``, ``context [B, M, C]``, ``rope`` of ``rope_table``."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + time).chunk(6, dim=1)
        x = x + gate * self.self_attn(self.norm1(x) * (1 + scale) + shift, rope)
        x = x + self.cross_attn(self.norm3(x), context)
        return x + ffn_gate * self.ffn(self.norm2(x) * (1 + ffn_scale) + ffn_shift)


class Head(nn.Module):
    """Modulated normalisation and projection to the channels of one patch."""

    def __init__(self, dim, channels):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.head = nn.Linear(dim, channels * math.prod(PATCH))
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x, time):
        """``x [B, N, C]``, ``time [B, C]`` -> ``[B, N, channels * 4]``."""
        shift, scale = (self.modulation + time[:, None]).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class WanTransformer(nn.Module):
    """Wan 2.1 T2V: predicts ``noise - data`` from a noisy latent, the time and conditioning tokens."""

    def __init__(self, dim=256, layers=8, ffn_dim=1024, channels=16, text_dim=4096):
        super().__init__()
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=PATCH, stride=PATCH)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(FREQUENCY_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim) for _ in range(layers))
        self.head = Head(dim, channels)
        self.initialise()

    def initialise(self):
        """Xavier weights, zero biases, small embeddings, and a zero output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        for embedding in (self.text_embedding, self.time_embedding):
            nn.init.normal_(embedding[0].weight, std=0.02)
            nn.init.normal_(embedding[2].weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(self, x, time, context):
        """One evaluation.

        ``x [B, C, T, H, W]`` noisy latent with even H and W, ``time [B]`` = sigma * 1000, ``context [B, M, text_dim]``.
        Returns the predicted ``noise - data`` in the shape of ``x``.
        """
        x = self.patch_embedding(x)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2).to(self.head.modulation.dtype)
        rope = rope_table(grid, x.device)
        time = self.time_embedding(time_features(time, FREQUENCY_DIM).to(x.dtype))
        projected = self.time_projection(time).unflatten(1, (6, -1))
        context = self.text_embedding(context)
        for block in self.blocks:
            x = block(x, projected, context, rope)
        x = self.head(x, time).unflatten(2, (*PATCH[1:], -1)).unflatten(1, grid)
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
