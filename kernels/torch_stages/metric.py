"""The distance by which queries are grouped."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Clusters

# The rest is Euclidean, so that no direction is free.
KEY_WEIGHT = 0.9


def key_metric(keys: Clusters) -> Tensor:
    """Symmetric ``[B, H, D, D]``: the covariance of the key centroids, of mean eigenvalue 1, mixed with the identity.

    Two queries differ, for all that attention knows, by how differently they see the keys: with key covariance S the mean
    squared difference of their logits is ``(q - q')^T S (q - q')``, up to a constant.
    """
    weights = (keys.sizes / keys.sizes.sum(-1, keepdim=True))[..., None].to(keys.centroids.dtype)
    spread = keys.centroids - (keys.centroids * weights).sum(2, keepdim=True)
    covariance = spread.mT @ (spread * weights)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    # Identical keys have no directions to prefer, and keys whose squares overflow have none that is known.
    return torch.where((scale > 0) & scale.isfinite(), KEY_WEIGHT * covariance / scale + (1 - KEY_WEIGHT) * identity, identity)
