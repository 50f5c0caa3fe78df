"""What the pack reads of :class:`~..kernels.types.RoutedHeads`, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ...kernels import RoutedHeads

# Errors are kept as one byte each, on a logarithmic scale from 10 ** LOWEST to 10 ** HIGHEST; 0 is "none or less".
LOWEST, HIGHEST = -6.0, 1.0
CODES = 255


@dataclass(frozen=True)
class HeadRouting:
    """How one head was routed, on the device of the call and independent of the tensors of the call.

    Attributes:
        exact: bool ``[G, C]``, blocks computed exactly.
        errors: uint8 ``[G, C]``, codes (see :func:`error_of_code`) of the error that a block makes, or would make, when it
            is estimated: relative to the norm of the group's output.
        query_labels: int16 or int32 ``[N]``, the routing group of each video token as a query.
        key_labels: int16 or int32 ``[N]``, the key cluster of each video token.
    """

    exact: Tensor
    errors: Tensor
    query_labels: Tensor
    key_labels: Tensor

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (self.exact, self.errors, self.query_labels, self.key_labels))


# The errors of all codes.
_ERRORS = (10.0 ** (LOWEST + numpy.arange(CODES + 1, dtype="float32") / CODES * (HIGHEST - LOWEST))) * (numpy.arange(CODES + 1) > 0)


def head_routing(routed: RoutedHeads, head: int) -> HeadRouting:
    """Copy out the routing of head number ``head``, one of ``routed.heads``; waits for nothing."""
    place = head - routed.heads.start
    exact = routed.routing.exact[0, place]
    groups, errors, norms = _groups(routed, place)
    relative = (errors.float() / norms.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]).sqrt()
    return HeadRouting(
        exact=exact.clone(),
        errors=_codes(relative),
        query_labels=_narrow(groups, exact.shape[0]),
        key_labels=_narrow(routed.key_clusters.labels[0, place], exact.shape[1]),
    )


def error_of_code(codes):
    """Relative errors of the codes of :class:`HeadRouting` (a numpy array); code 0 is 0."""
    return _ERRORS[codes]


def _groups(routed: RoutedHeads, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels ``[N]``, squared errors ``[G, C]`` and squared output norms ``[G]`` of the query groups of one head."""
    probe = routed.probe
    return routed.query_groups.labels[0, place], probe.errors[0, place], probe.output_norms[0, place]


def _codes(errors: Tensor) -> Tensor:
    share = (errors.clamp(min=10.0**LOWEST).log10() - LOWEST) / (HIGHEST - LOWEST)
    return (share * CODES).round().clamp(0, CODES).to(torch.uint8)


def _narrow(labels: Tensor, count: int) -> Tensor:
    kind = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
    return labels.to(kind, copy=True)
