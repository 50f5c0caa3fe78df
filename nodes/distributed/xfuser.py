"""xFuser's attention registry: calls of a backend run sparse where the caller says how their tokens lie.

from svg_ear.nodes.distributed.xfuser import KEY, SparseCall, register

register(AttentionBackendType.SDPA)
call = SparseCall(Gathered((tokens,), ranks), Settings(density=0.1), state=states[layer])
USP(query, key, value, backend=AttentionBackendType.SDPA, attention_kwargs={KEY: call})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ... import kernels
from ...kernels import ClusterState, SequenceLayout, Settings
from ...kernels.arguments import working_memory
from ...kernels.settings import CALIBRATED
from .gathered import Gathered

# Where a SparseCall lies in ``attention_kwargs``.
KEY = "svg_ear"


@dataclass
class SparseCall:
    """What a caller of xFuser says of one attention call. Raises ValueError for settings that follow a calibration.

    Attributes:
        order: how the tokens lie that Ulysses gathers.
        settings: how attention is routed.
        layout: which of the collected tokens are video and which are always exact; None routes all.
        state: clusters of the previous denoising step, of this layer and rank; None clusters from scratch.
        owners: see :func:`kernels.sparse_attention`.
        statistics: what the call did, once it ran.
    """

    order: Gathered
    settings: Settings = Settings()
    layout: SequenceLayout | None = None
    state: ClusterState | None = None
    owners: Sequence[int] | None = None
    statistics: kernels.Statistics | None = None

    def __post_init__(self):
        if self.settings.method == CALIBRATED:
            raise ValueError(f"method is {CALIBRATED!r}, which knows all heads together, and here a GPU has some of them: choose another")

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of gathered ``[B, H, len(order), D]``."""
        streams = [self.order.collect(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (q, k, v)]
        memory = working_memory(sum(tensor.nbytes for tensor in streams), q.device, self.order.ranks)
        result = kernels.sparse_attention(
            *streams, self.settings, layouts=self.layout, state=self.state, owners=self.owners, memory_limit=memory
        )
        self.statistics = result.statistics
        return self.order.spread(result.output.transpose(1, 2)).transpose(1, 2)


def register(backend) -> None:
    """Take the place of ``backend``, an ``AttentionBackendType``, in xFuser's registry; calls without a SparseCall go on to it."""
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, register_attention_function

    before = ATTENTION_FUNCTION_REGISTRY[backend]
    if not isinstance(before, Attention):
        register_attention_function(backend)(Attention(before))


class Attention:
    """An attention function of xFuser, ``[B, H, tokens, D]`` of all tokens and some heads, in front of the one ``before``.

    Raises ValueError for a SparseCall that xFuser's call does not fit.
    """

    def __init__(self, before: Callable):
        self._before = before
        self.__name__ = self.__qualname__ = "svg_ear"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool, attention_kwargs: dict | None = None):
        call: SparseCall | None = (attention_kwargs or {}).get(KEY)
        if call is None:
            return self._before(q, k, v, dropout_p, is_causal, attention_kwargs)
        _check(call, q, k, dropout_p, is_causal)
        # The second is the log-sum-exp, by which only ring attention joins parts of the keys.
        return call.attend(q, k, v), None


def _check(call: SparseCall, q: Tensor, k: Tensor, dropout_p: float, is_causal: bool) -> None:
    from xfuser.core.distributed import get_ring_parallel_world_size

    ring = get_ring_parallel_world_size()
    if ring > 1:
        raise ValueError(f"ring_degree is {ring}; SVG-EAR needs all tokens of a head: set ring_degree to 1 and raise ulysses_degree")
    if dropout_p or is_causal:
        raise ValueError(f"dropout_p is {dropout_p} and is_causal {is_causal}; sparse attention has neither: pass 0.0 and False")
    if not q.shape[2] == k.shape[2] == len(call.order):
        raise ValueError(
            f"the call has {q.shape[2]} queries and {k.shape[2]} keys, and the order {call.order} has {len(call.order)} tokens: leave out "
            "joint tensors, which every rank repeats as queries, and split all tokens over the ranks"
        )
