"""One mask for steps that nearly agree."""

from __future__ import annotations

import numpy

from .bits import jaccard

# Steps whose masks agree above this share one (CalibAtt).
SAME_MASK = 0.97


def share_masks(kept: numpy.ndarray, same_mask: float) -> tuple[list[numpy.ndarray], numpy.ndarray]:
    """Masks of one head for all steps, fewer where neighbouring steps agree, and int32 ``[S]``, which of them each step takes.

    A shared mask has the blocks of all its steps, so that no step computes less than was calibrated.

    Args:
        kept: packed masks uint8 ``[S, n, m]``, steps in order.
        same_mask: a step joins the masks before it when its Jaccard index with their union is above this.
    """
    masks, members = [kept[0]], [0]
    for mask in kept[1:]:
        if jaccard(masks[-1], mask) > same_mask:
            masks[-1] = masks[-1] | mask
        else:
            masks.append(mask)
        members.append(len(masks) - 1)
    return masks, numpy.array(members, dtype=numpy.int32)
