"""Forwards of blocks whose tokens are split over ranks, and the attention that they share.

As in raylight the attention is a global of the module, reads ``transformer_options`` and is not given them.
"""

from types import MethodType

import torch
from torch.nn.functional import scaled_dot_product_attention

from .distributed_modules.inner_attention import INNER_ATTENTION_KEY


def alone(tensor):
    return tensor


class Exchange:
    """The all-to-all to ``[B, all tokens, some heads, D]`` and back; one rank has all."""

    there = back = staticmethod(alone)


def xfuser_optimized_attention(q, k, v, heads, skip_reshape=False, *args, **kwargs):
    if not skip_reshape:
        q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    q, k, v = (Exchange.there(tensor.transpose(1, 2)) for tensor in (q, k, v))

    def dense(q, k, v, **options):
        output = scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v)), scale=options["softmax_scale"])
        return output.transpose(1, 2)

    options = {"softmax_scale": kwargs.get("scale"), "dropout_p": 0.0, "causal": False, "window_size": (-1, -1), "joint_tensor_key": None}
    transformer_options = kwargs.get("transformer_options", {})
    processor = transformer_options.get(INNER_ATTENTION_KEY)
    if processor is None:
        output = dense(q, k, v, **options)
    else:
        output = processor(dense, q, k, v, transformer_options=transformer_options, group=None, **options)
    return Exchange.back(output).flatten(2)


def self_attention_forward(self, x, transformer_options={}):
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    return self.o(xfuser_optimized_attention(q, k, v, heads=self.heads))


def double_block_forward(self, img, txt, transformer_options={}):
    """Text and video of this rank, in this order."""
    q, k, v = (
        torch.cat(both, dim=2)
        for both in zip(*(self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4) for tokens in (txt, img)))
    )
    output = self.o(xfuser_optimized_attention(q, k, v, self.heads, skip_reshape=True))
    return img + output[:, txt.shape[1] :], txt + output[:, : txt.shape[1]]


def inject(model):
    """Put the forwards in the place of the model's, as loading a model does."""
    for block in model.blocks:
        block.self_attn.forward = MethodType(self_attention_forward, block.self_attn)


def inject_double(model):
    for block in model.double_blocks:
        block.forward = MethodType(double_block_forward, block)
