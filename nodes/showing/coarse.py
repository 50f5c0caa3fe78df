"""Routing maps with fewer rows and columns, for the view in the browser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from ..recording.routed import CODES, HIGHEST, LOWEST
from ..recording.trace import RoutingMap
from .arrange import places, seriation
from .palette import ERROR_RANGE

# Errors are sent in coarser steps than they are kept, 13 % up or down: the last bits of their codes cost half the room.
CODE_STEP = 4


@dataclass(frozen=True)
class Totals:
    """A routing map in order, of which neighbouring rows and columns were merged, as sums that can be merged further.

    Attributes:
        pairs: float64 ``[R, C]``, query-key pairs computed exactly.
        errors: float64 ``[R, C]``, squared errors times the queries that make them.
        group_sizes, cluster_sizes: tokens of each row and column; groups, clusters: how many were merged into it.
        query_labels, key_labels: row and column of each token.
    """

    pairs: numpy.ndarray
    errors: numpy.ndarray
    group_sizes: numpy.ndarray
    cluster_sizes: numpy.ndarray
    groups: numpy.ndarray
    clusters: numpy.ndarray
    query_labels: numpy.ndarray
    key_labels: numpy.ndarray

    @classmethod
    def of(cls, recorded: RoutingMap, rows: int, columns: int) -> Totals:
        """Arrange a map and merge neighbours until it has at most ``rows`` rows and ``columns`` columns, about equal in tokens."""
        row_order, column_order = seriation(recorded)
        group_sizes, cluster_sizes = recorded.group_sizes[row_order], recorded.cluster_sizes[column_order]
        row_of, column_of = _buckets(group_sizes, rows), _buckets(cluster_sizes, columns)
        starts = numpy.append(numpy.flatnonzero(numpy.diff(row_of, prepend=-1)), len(row_of))
        count = len(starts) - 1
        pairs, errors = (numpy.empty((count, recorded.exact.shape[1]), numpy.float32) for _ in range(2))
        # Row by row of the result, so that what is worked on stays small.
        for row, (start, stop) in enumerate(zip(starts, starts[1:])):
            some, sizes = row_order[start:stop], group_sizes[start:stop].astype(numpy.float32)
            pairs[row] = sizes @ recorded.exact[some].astype(numpy.float32)
            errors[row] = sizes @ _squared_errors(recorded.error_codes[some])
        column_starts = numpy.flatnonzero(numpy.diff(column_of, prepend=-1))

        def merged(cells):
            return numpy.add.reduceat(cells.take(column_order, axis=1), column_starts, axis=1).astype(float)

        return cls(
            pairs=merged(pairs * recorded.cluster_sizes.astype(numpy.float32)),
            errors=merged(errors),
            group_sizes=numpy.add.reduceat(group_sizes, starts[:-1]),
            cluster_sizes=numpy.add.reduceat(cluster_sizes, column_starts),
            groups=numpy.bincount(row_of),
            clusters=numpy.bincount(column_of),
            query_labels=row_of[places(row_order, recorded.exact.shape[0])[recorded.query_labels]],
            key_labels=column_of[places(column_order, recorded.exact.shape[1])[recorded.key_labels]],
        )

    def merged(self, rows: int, columns: int) -> Totals:
        """The same with at most ``rows`` rows and ``columns`` columns."""
        row_of, column_of = _buckets(self.group_sizes, rows), _buckets(self.cluster_sizes, columns)
        row_starts, column_starts = (numpy.flatnonzero(numpy.diff(of, prepend=-1)) for of in (row_of, column_of))

        def both(cells):
            return numpy.add.reduceat(numpy.add.reduceat(cells, row_starts, axis=0), column_starts, axis=1)

        return Totals(
            pairs=both(self.pairs),
            errors=both(self.errors),
            group_sizes=numpy.add.reduceat(self.group_sizes, row_starts),
            cluster_sizes=numpy.add.reduceat(self.cluster_sizes, column_starts),
            groups=numpy.add.reduceat(self.groups, row_starts),
            clusters=numpy.add.reduceat(self.clusters, column_starts),
            query_labels=row_of[self.query_labels],
            key_labels=column_of[self.key_labels],
        )

    @property
    def exact(self) -> numpy.ndarray:
        """uint8 ``[R, C]``, share of the pairs computed exactly, 255 for all of them."""
        return (self.pairs / (self.group_sizes[:, None] * self.cluster_sizes) * 255).round().astype(numpy.uint8)

    @property
    def error_codes(self) -> numpy.ndarray:
        """uint8 ``[R, C]`` as in :class:`HeadRouting`, errors below the range of the colours as 0.

        Errors of clusters add in squares; those of groups are relative to outputs of their own, so they average.
        """
        errors = numpy.sqrt(self.errors / self.group_sizes[:, None])
        levels = (numpy.log10(numpy.maximum(errors, 10.0**LOWEST)) - LOWEST) / (HIGHEST - LOWEST) * CODES
        codes = (levels / CODE_STEP).round().clip(1, CODES // CODE_STEP) * CODE_STEP
        return numpy.where(errors < ERROR_RANGE[0], 0, codes).astype(numpy.uint8)

    @property
    def density(self) -> float:
        """Share of the query-key pairs that were computed exactly."""
        return float(self.pairs.sum() / (self.group_sizes.sum() * self.cluster_sizes.sum()))


def _squared_errors(codes: numpy.ndarray) -> numpy.ndarray:
    """float32, the squares of ``error_of_code``, but for code 0 that of the lowest error."""
    slope = numpy.float32(2 * numpy.log(10.0) * (HIGHEST - LOWEST) / CODES)
    return numpy.exp(codes * slope + numpy.float32(2 * numpy.log(10.0) * LOWEST))


def _buckets(sizes: numpy.ndarray, count: int) -> numpy.ndarray:
    """For each group, in order, the number of the bucket that it falls in, without gaps."""
    if len(sizes) <= count:
        return numpy.arange(len(sizes))
    middle = numpy.cumsum(sizes) - sizes / 2
    return numpy.unique((middle / sizes.sum() * count).astype(int), return_inverse=True)[1]
