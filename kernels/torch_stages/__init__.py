"""The stages in plain torch, chunked so that memory stays bounded: what runs on a CPU."""

from .attend import attend, attend_dense
from .cluster import cluster, cluster_as, cluster_from_labels, split
from .energies import block_energies, log_denominators
from .metric import key_metric
from .permute import permute
from .probe import probe_centroids, probe_tokens
from .quantize import quantize
from .route import route, route_given
from .summarize import summarize
from .workspace import key_bytes, table_bytes

# Whether calls that start from clusters do nothing but launch kernels, with the usual settings, and so can be repeated.
LAUNCHES = False

__all__ = [
    "LAUNCHES",
    "attend",
    "attend_dense",
    "block_energies",
    "cluster",
    "cluster_as",
    "cluster_from_labels",
    "key_bytes",
    "key_metric",
    "log_denominators",
    "permute",
    "probe_centroids",
    "probe_tokens",
    "quantize",
    "route",
    "route_given",
    "split",
    "summarize",
    "table_bytes",
]
