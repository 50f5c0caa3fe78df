"""What is kept from one denoising step to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from .settings import Settings


@dataclass
class ClusterState:
    """Clusters kept from one denoising step to the next, for calls of one shape.

    A call of another shape, dtype, device, clustering or implementation needs a new state; :func:`sparse_attention`
    raises ValueError otherwise. How much is exact may change from call to call.

    Attributes:
        calls: calls made with this state.
        signature: shape, device and clustering of those calls.
        items: last clusters of the batch items that are clustered together, under the first of them.
    """

    calls: int = 0
    signature: tuple | None = None
    items: dict[int, KeptClusters] = field(default_factory=dict)

    def begin(self, shape: tuple, settings: Settings) -> None:
        """Take the first call's shape and clustering; raise ValueError when a later call has others."""
        signature = (*shape, *settings.clustering)
        if self.signature is None:
            self.signature = signature
        elif self.signature != signature:
            raise ValueError(f"this state belongs to calls of {self.signature}, not {signature}; use a new ClusterState")

    def tensors(self) -> list[Tensor | None]:
        """All that is kept, of one group of batch items after the other."""
        return [getattr(kept, entry.name) for kept in self.items.values() for entry in fields(kept)]

    def of(self, tensors: Sequence[Tensor | None]) -> ClusterState:
        """The same state with other :meth:`tensors`."""
        each = len(fields(KeptClusters))
        kept = (KeptClusters(*tensors[first : first + each]) for first in range(0, len(tensors), each))
        return replace(self, items=dict(zip(self.items, kept)))

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        return sum(kept.nbytes() for kept in self.items.values())


@dataclass(frozen=True)
class KeptClusters:
    """What the next call starts from, in the dtype of the inputs: centroids, and labels when a later call reuses them.

    Attributes:
        query_centroids, key_centroids: ``[B, H, count, D]``; those of the keys are None where another call found them.
        query_labels, key_labels: integer ``[B, H, N]``, or None.
    """

    query_centroids: Tensor
    key_centroids: Tensor | None
    query_labels: Tensor | None
    key_labels: Tensor | None

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        tensors = (getattr(self, entry.name) for entry in fields(self))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
