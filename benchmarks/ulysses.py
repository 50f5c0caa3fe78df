"""Sequence parallelism (Ulysses) between processes: through xFuser, or through the two all-to-alls that it consists of.

An engine's ``call`` takes what a rank holds, ``[B, tokens / ranks, H, D]``, and gives its part of the output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import distribution
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from . import pack

pack.load()
from svg_ear.nodes.distributed.xfuser import KEY, SparseCall, register  # noqa: E402

# The fastest first, as the pack orders them for dense calls.
DENSE_ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Their __init__ import every pipeline, which nothing here uses; their modules are found as ever.
BARE = ("xfuser", "xfuser.core", "xfuser.model_executor", "xfuser.model_executor.layers")


def part(tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """What a rank holds of ``[B, tokens, ...]``, padded with zeros to a multiple of the ranks."""
    missing = -tensor.shape[1] % ranks
    padded = pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing)) if missing else tensor
    return padded.chunk(ranks, dim=1)[rank].contiguous()


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact attention of ``[B, H, tokens, D]``."""
    with sdpa_kernel(DENSE_ORDER, set_priority=True):
        return scaled_dot_product_attention(q, k, v)


class AllToAlls:
    """The all-to-alls alone, as one collective each, over the processes of the default group.

    Those of q, k and v are under way together, and a tensor is copied once on either way. xFuser's ``USP`` (0.7.0) waits for each before
    it begins the next, or has one for all three (``combine_qkv_a2a``), and copies each tensor before and after it.
    """

    name = "all_to_all_single"

    def __init__(self, rank: int, ranks: int):
        self._ranks = ranks

    def gather(self, *tensors: Tensor) -> list[Tensor]:
        """Each ``[B, tokens / ranks, H, D]`` as ``[B, tokens, H / ranks, D]``."""
        under_way = [self._exchange(tensor.unflatten(2, (self._ranks, -1)).permute(2, 0, 1, 3, 4)) for tensor in tensors]
        return [received().transpose(0, 1).flatten(1, 2) for received in under_way]

    def scatter(self, tensor: Tensor) -> Tensor:
        """The way back of one."""
        received = self._exchange(tensor.unflatten(1, (self._ranks, -1)).transpose(0, 1))
        return received().permute(1, 2, 0, 3, 4).flatten(2, 3)

    def call(self, q: Tensor, k: Tensor, v: Tensor, sparse: SparseCall | None = None) -> Tensor:
        gathered = (tensor.transpose(1, 2) for tensor in self.gather(q, k, v))
        return self.scatter((sparse.attend if sparse else dense)(*gathered).transpose(1, 2))

    def _exchange(self, parts: Tensor) -> Callable[[], Tensor]:
        """Begin to send each rank its part of ``[ranks, ...]``; what is returned waits, and gives what all ranks sent."""
        sent = parts.contiguous()
        received = torch.empty_like(sent)
        work = distributed.all_to_all_single(received, sent, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return received

        return wait


class XFuser:
    """xFuser's ``USP`` with the attention function that the pack registers."""

    def __init__(self, rank: int, ranks: int):
        self._usp = load_xfuser()
        join_xfuser(rank, ranks)
        from xfuser.core.distributed.attention_backend import AttentionBackendType

        self.name = f"xfuser {distribution('xfuser').version}"
        self._backend = AttentionBackendType.CUDNN if torch.cuda.is_available() else AttentionBackendType.SDPA_MATH
        register(self._backend)

    def gather(self, *tensors: Tensor) -> list[Tensor]:
        """What ``USP`` does before its attention: each ``[B, tokens / ranks, H, D]`` as ``[B, H / ranks, tokens, D]``."""
        return [self._usp._ft_c_input_all_to_all(tensor.transpose(1, 2)) for tensor in tensors]

    def scatter(self, tensor: Tensor) -> Tensor:
        """What it does after that."""
        return self._usp._ft_c_output_all_to_all(tensor).transpose(1, 2)

    def call(self, q: Tensor, k: Tensor, v: Tensor, sparse: SparseCall | None = None) -> Tensor:
        heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
        output = self._usp.USP(*heads_first, backend=self._backend, attention_kwargs={KEY: sparse} if sparse else None)
        return output.transpose(1, 2)


ENGINES: dict[str, Callable[[int, int], AllToAlls | XFuser]] = {"torch": AllToAlls, "xfuser": XFuser}


def load_xfuser() -> ModuleType:
    """Import xFuser's sequence parallelism, without its pipelines; returns the module of ``USP``.

    Without an accelerator xFuser 0.7.0 refuses to be imported: there it is told of the one for which it chooses gloo, before it asks.
    """
    if not torch.cuda.is_available():
        torch.backends.mps.is_available = lambda: True
    folder = distribution("xfuser").locate_file("xfuser")
    for name in BARE:
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = package
    from xfuser.model_executor.layers import usp

    return usp


def join_xfuser(rank: int, ranks: int) -> None:
    """Give xFuser the processes of the default group, which share every sequence."""
    from xfuser.core.distributed import parallel_state, runtime_state
    from xfuser.model_executor.layers import usp

    backend = distributed.get_backend()
    parallel_state.init_distributed_environment(ranks, rank, "env://", rank, backend)
    parallel_state.initialize_model_parallel(sequence_parallel_degree=ranks, ulysses_degree=ranks, backend=backend)
    group = parallel_state.get_sp_group()
    if not torch.cuda.is_available():
        # What yunchang makes, which xFuser leaves out on a CPU.
        group.ulysses_world_size, group.ulysses_rank = ranks, rank
        usp.PROCESS_GROUP = SimpleNamespace(ULYSSES_PG=group.device_group, RING_PG=None)
    # Else made from the arguments of a pipeline.
    runtime_state._RUNTIME = SimpleNamespace(fp8_comms=None, runtime_config=SimpleNamespace(use_spargeattn_head_balance=False))
