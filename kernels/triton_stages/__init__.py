"""The stages as Triton kernels, under the names of the torch stages: what runs on a GPU. Importing it needs Triton."""

from .attend import attend
from .cluster import cluster, cluster_from_labels
from .dense import attend_dense
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
