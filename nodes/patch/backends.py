"""Which of PyTorch's exact attention kernels is the fastest for a call, found out on the device."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .call import KNOWN_OPTIONS, AttentionCall

logger = logging.getLogger("svg_ear")

# ComfyUI's own is left only for one that takes at most this share of its time: what is as good as even would be another one each start.
CLEARLY_FASTER = 0.95
# Queries that a trial computes, over all batch items and heads: several for each part of the largest GPUs, a tenth of a long call.
TRIAL_QUERIES = 2**18
TRIAL_RUNS = 2
# Calls with more batch items are computed in parts by ComfyUI.
LARGEST_BATCH = 2**15
DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """One of PyTorch's kernels for scaled dot product attention; all of them are exact up to the rounding of their dtype.

    Attributes:
        name: for the report.
        kernel: PyTorch's name for it.
        can_use: PyTorch's check of whether it takes a call.
    """

    name: str
    kernel: SDPBackend
    can_use: Callable[[torch.backends.cuda.SDPAParams], bool]

    def takes(self, call: AttentionCall) -> bool:
        """Whether the kernel can compute ``call`` on this device."""
        return self.can_use(torch.backends.cuda.SDPAParams(*call.split_heads(), _four_axes(call.mask), 0.0, False, False))

    def attend(self, call: AttentionCall) -> Tensor:
        """The output of ``call`` in the layout that the caller expects."""
        # The others stay allowed, as ComfyUI does it: which are is a setting of the process, and other threads may be computing.
        order = [self.kernel, *(backend.kernel for backend in BACKENDS if backend is not self), SDPBackend.MATH]
        with sdpa_kernel(order, set_priority=True):
            return call.arrange(
                functional.scaled_dot_product_attention(
                    *call.split_heads(), attn_mask=_four_axes(call.mask), scale=call.options.get("scale")
                )
            )


def _four_axes(mask: Tensor | None) -> Tensor | None:
    """A mask ``[Q, L]`` or ``[B, Q, L]`` as ``[B, heads, Q, L]``."""
    if mask is None or mask.ndim > 3:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


def _backends() -> tuple[Backend, ...]:
    """Those of this PyTorch; before 2.6 none, because their order cannot be set."""
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return ()
    cuda = torch.backends.cuda
    return (
        Backend("cuDNN", SDPBackend.CUDNN_ATTENTION, cuda.can_use_cudnn_attention),
        Backend("FlashAttention", SDPBackend.FLASH_ATTENTION, cuda.can_use_flash_attention),
        Backend("memory-efficient", SDPBackend.EFFICIENT_ATTENTION, cuda.can_use_efficient_attention),
    )


BACKENDS = _backends()


def device_seconds(compute: Callable[[], Tensor], device: torch.device) -> float:
    """What ``compute`` takes on a CUDA device, after a run that prepares its kernels; the host waits for it."""
    compute()
    stream, events = torch.cuda.current_stream(device), [torch.cuda.Event(enable_timing=True) for _ in range(TRIAL_RUNS + 1)]
    events[0].record(stream)
    for event in events[1:]:
        compute()
        event.record(stream)
    events[-1].synchronize()
    return min(before.elapsed_time(after) for before, after in pairwise(events)) / 1000


class FastestBackend:
    """The fastest backend for calls of a kind: device, dtype, head dimension, layout, about so many tokens, with or without a mask.

    At the first call of a kind each backend computes its first queries, and so does the attention that the call was meant for, which stays
    unless another is clearly faster. This is once in the process and before anything is computed that counts, so that the same seed
    gives the same clip from the first run on. One that raises an error is left out. Safe for one thread per device.

    Args:
        backends: to choose among.
        seconds: what a function takes on a device.
        device_type: of the devices that have them.
    """

    def __init__(
        self,
        backends: Sequence[Backend] = BACKENDS,
        seconds: Callable[[Callable[[], Tensor], torch.device], float] = device_seconds,
        device_type: str = "cuda",
    ):
        self._backends, self._seconds, self._device_type = tuple(backends), seconds, device_type
        self._found: dict[Hashable, Backend | None] = {}
        self._lock = threading.Lock()

    def find(self, call: AttentionCall, attention: Callable[..., Tensor]) -> Backend | None:
        """The backend for ``call``, None where ``attention``, a function of ComfyUI's signature, computes it best."""
        if not self._suits(call):
            return None
        kind = _kind(call)
        with self._lock:
            if kind not in self._found:
                self._found[kind] = self._try(call.first_queries(TRIAL_QUERIES), attention)
            found = self._found[kind]
        return found if found is not None and found.takes(call) else None

    def leave_out(self, call: AttentionCall) -> None:
        """Compute no more calls like ``call`` with a backend."""
        with self._lock:
            self._found[_kind(call)] = None

    def _suits(self, call: AttentionCall) -> bool:
        """Whether the backends compute what ``call`` asks for, and may be tried on it."""
        return (
            call.q.device.type == self._device_type
            and call.q.dtype in DTYPES
            and call.q.shape[0] <= LARGEST_BATCH
            and call.q.ndim == call.k.ndim
            and call.q.shape[:-2] == call.k.shape[:-2]
            and call.q.shape[-1] == call.k.shape[-1]
            and call.k.shape == call.v.shape
            and all(name in KNOWN_OPTIONS or not value for name, value in call.options.items())
            and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (call.q, call.k, call.v)))
            and not (call.q.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        )

    def _try(self, call: AttentionCall, attention: Callable[..., Tensor]) -> Backend | None:
        candidates = [backend for backend in self._backends if backend.takes(call)]
        if not candidates:
            return None
        device = call.q.device
        own = self._seconds(lambda: call.through(attention), device)
        times: dict[Backend, float] = {}
        for backend in candidates:
            try:
                times[backend] = self._seconds(lambda: backend.attend(call), device)
            except RuntimeError as error:
                logger.info("dense attention: %s is left out for %s: %s", backend.name, tuple(call.q.shape), error)
        fastest = min(times, key=times.get, default=None)
        found = fastest if fastest is not None and times[fastest] <= CLEARLY_FASTER * own else None
        logger.info(
            "dense attention of %s queries, %s keys: %s, ComfyUI's own %.2f ms; %s is taken",
            call.tokens,
            call.key_tokens,
            ", ".join(f"{backend.name} {1000 * taken:.2f}" for backend, taken in times.items()),
            1000 * own,
            found.name if found else "ComfyUI's own",
        )
        return found


def _kind(call: AttentionCall) -> Hashable:
    """What calls have in common that the same backend is the fastest for; lengths count by powers of two."""
    lengths = call.tokens.bit_length(), call.key_tokens.bit_length()
    return call.q.device, call.q.dtype, call.head_dim, call.skip_reshape, call.mask is None, lengths
