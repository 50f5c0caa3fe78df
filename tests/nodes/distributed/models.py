"""Models, MODELs and workers in a few lines, of the classes by which an architecture is recognised."""

from types import SimpleNamespace

import torch
from torch import nn

HEADS, DIM = 4, 64


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = HEADS
        self.qkv = nn.Linear(HEADS * DIM, 3 * HEADS * DIM, bias=False)
        self.o = nn.Linear(HEADS * DIM, HEADS * DIM, bias=False)


class WanBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = SelfAttention()

    def forward(self, x, transformer_options={}):
        return x + self.self_attn(x, transformer_options=transformer_options)


class WanModel(nn.Module):
    patch_size = (1, 2, 2)

    def __init__(self, blocks=2):
        super().__init__()
        self.blocks = nn.ModuleList(WanBlock() for _ in range(blocks))

    def run(self, x, transformer_options):
        for index, block in enumerate(self.blocks):
            x = block(x, transformer_options=transformer_options | {"block_index": index, "block_type": "double"})
        return x


class HunyuanVideo(nn.Module):
    patch_size = (1, 2, 2)

    def __init__(self, blocks=2):
        super().__init__()
        self.double_blocks = nn.ModuleList(SelfAttention() for _ in range(blocks))
        self.single_blocks = nn.ModuleList()

    def run(self, img, txt, transformer_options):
        for index, block in enumerate(self.double_blocks):
            options = transformer_options | {"block_index": index, "block_type": "double"}
            img, txt = block(img=img, txt=txt, transformer_options=options)
        return torch.cat((txt, img), dim=1)


class Model:
    """A MODEL of ComfyUI."""

    def __init__(self, diffusion_model):
        self.model = SimpleNamespace(diffusion_model=diffusion_model)
        self.model_options, self.wrappers, self.callbacks, self.attachments = {}, {}, {}, {}

    def clone(self):
        other = Model(self.model.diffusion_model)
        for name in ("model_options", "wrappers", "callbacks", "attachments"):
            setattr(other, name, dict(getattr(self, name)))
        return other

    def get_wrappers(self, kind, key):
        return self.wrappers.get((kind, key), [])

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.pop((kind, key), None)

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers[kind, key] = [*self.get_wrappers(kind, key), wrapper]

    def remove_callbacks_with_key(self, kind, key):
        self.callbacks.pop((kind, key), None)

    def add_callback_with_key(self, kind, key, callback):
        self.callbacks[kind, key] = callback

    def set_attachments(self, key, attachment):
        self.attachments[key] = attachment

    def get_attachment(self, key):
        return self.attachments.get(key)


class Worker:
    """A worker of raylight in this process."""

    def __init__(self, model):
        self.model = model
        self.model_function_runner = SimpleNamespace(remote=self._change)
        self.model_function_runner_get_values = SimpleNamespace(remote=lambda function, *args: function(self.model, *args))

    def _change(self, function, *args):
        self.model = function(self.model, *args)
