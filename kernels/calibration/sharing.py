"""One mask for steps that nearly agree."""

from __future__ import annotations

import numpy

from .bits import jaccard, popcount

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


def merge_masks(masks: list[numpy.ndarray], members: numpy.ndarray, count: int) -> tuple[list[numpy.ndarray], numpy.ndarray]:
    """At most ``count`` of the masks of one head, those merged first that cost the fewest additional blocks over all steps.

    Arguments and result as :func:`share_masks` returns them.
    """
    masks, lasting = list(masks), numpy.bincount(members, minlength=len(masks)).tolist()
    spent = [popcount(mask) * steps for mask, steps in zip(masks, lasting)]

    def cost(place: int) -> int:
        steps = lasting[place] + lasting[place + 1]
        return int(popcount(masks[place] | masks[place + 1])) * steps - spent[place] - spent[place + 1]

    while len(masks) > count:
        place = min(range(len(masks) - 1), key=cost)
        masks[place : place + 2] = [masks[place] | masks[place + 1]]
        lasting[place : place + 2] = [lasting[place] + lasting[place + 1]]
        spent[place : place + 2] = [popcount(masks[place]) * lasting[place]]
    return masks, numpy.repeat(numpy.arange(len(masks), dtype=numpy.int32), lasting)
