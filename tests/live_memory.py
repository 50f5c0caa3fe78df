"""Tensors alive at once, counted by watching every operation."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Peak bytes of storages created inside the block beyond ``inputs``, and the largest number of elements of one."""

    def __init__(self, *inputs):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.live = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), tensor.itemsize)
        return result

    def _count(self, storage, itemsize):
        if storage._cdata in self.known or storage.nbytes() == 0:
            return
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size // itemsize)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.known.discard(key)
        self.live -= size
