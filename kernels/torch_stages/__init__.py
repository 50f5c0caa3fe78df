"""The stages in plain torch, chunked so that memory stays bounded: what runs on a CPU."""

from .attend import attend, attend_dense
from .cluster import cluster, cluster_from_labels
from .permute import permute
from .probe import probe_centroids, probe_tokens
from .route import route
from .summarize import summarize
from .workspace import working_bytes

__all__ = [
    "attend",
    "attend_dense",
    "cluster",
    "cluster_from_labels",
    "permute",
    "probe_centroids",
    "probe_tokens",
    "route",
    "summarize",
    "working_bytes",
]
