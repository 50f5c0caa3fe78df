"""Routing maps in an order that shows their structure."""

from __future__ import annotations

from dataclasses import replace

import numpy

from ..recording.trace import RoutingMap

# Rows and columns that the order is found from; the others are placed by what they have in common with these.
MOST_ROWS, MOST_COLUMNS = 256, 512


def arranged(recorded: RoutingMap) -> RoutingMap:
    """The same map without empty rows and columns, with groups that look at similar keys next to each other."""
    rows, columns = seriation(recorded)
    return replace(
        recorded,
        exact=recorded.exact[rows][:, columns],
        error_codes=recorded.error_codes[rows][:, columns],
        query_labels=places(rows, recorded.exact.shape[0])[recorded.query_labels],
        key_labels=places(columns, recorded.exact.shape[1])[recorded.key_labels],
    )


def seriation(recorded: RoutingMap) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The rows and the columns of a map that are not empty, in order.

    k-means numbers groups and clusters by chance. Rows and columns are ordered here by the second singular vectors of
    the exact pairs, normalised by row and column sums (spectral seriation), so that blocks gather along the diagonal.
    """
    rows, columns = numpy.flatnonzero(recorded.group_sizes), numpy.flatnonzero(recorded.cluster_sizes)
    if len(rows) < 2:
        return rows, columns
    some_rows, some_columns = _spread(rows, MOST_ROWS), _spread(columns, MOST_COLUMNS)
    normal, left, right = _normalised(recorded, some_rows, some_columns)
    row_values = numpy.linalg.eigh(normal @ normal.T)[1][:, -2]
    # What a column's rows are on average places it, and the other way round.
    column_values = _averages(recorded.exact[some_rows][:, columns].T, recorded.group_sizes[some_rows], row_values * left)
    sampled = column_values[numpy.searchsorted(columns, some_columns)]
    row_values = _averages(recorded.exact[rows][:, some_columns], recorded.cluster_sizes[some_columns], sampled)
    return rows[numpy.argsort(row_values, kind="stable")], columns[numpy.argsort(column_values, kind="stable")]


def places(order: numpy.ndarray, count: int) -> numpy.ndarray:
    """For each of ``count`` groups its place in ``order``, 0 for those that are not in it."""
    names = numpy.zeros(count, dtype=numpy.int32)
    names[order] = numpy.arange(len(order), dtype=numpy.int32)
    return names


def _normalised(recorded: RoutingMap, rows: numpy.ndarray, columns: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Exact pairs of some rows and columns over the roots of their sums, and one over these roots."""
    sizes = numpy.sqrt(recorded.group_sizes[rows].astype(numpy.float32))[:, None] * numpy.sqrt(recorded.cluster_sizes[columns])
    pairs = recorded.exact[rows][:, columns] * sizes
    left, right = (1 / numpy.sqrt(numpy.maximum(pairs.sum(axis), 1e-9)) for axis in (1, 0))
    return left[:, None] * pairs * right, left, right


def _averages(exact: numpy.ndarray, sizes: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
    """Mean of ``values`` over the exact pairs of each row, weighted by ``sizes``; 0 where there are none."""
    weights = numpy.stack((sizes * values, sizes), axis=-1).astype(numpy.float32)
    sums = exact.astype(numpy.float32) @ weights
    return sums[:, 0] / numpy.maximum(sums[:, 1], 1e-9)


def _spread(numbers: numpy.ndarray, count: int) -> numpy.ndarray:
    """At most ``count`` of them, evenly spread."""
    return numbers if len(numbers) <= count else numbers[numpy.arange(count) * len(numbers) // count]
