"""Routing maps in an order that shows their structure, and coarser ones."""

from __future__ import annotations

from dataclasses import replace

import numpy

from ..recording.trace import RoutingMap


def arranged(recorded: RoutingMap) -> RoutingMap:
    """The same map without empty rows and columns, with groups that look at similar keys next to each other.

    k-means numbers groups and clusters by chance. Rows and columns are ordered here by the second singular vectors of
    the exact pairs, normalised by row and column sums (spectral seriation), so that blocks gather along the diagonal.
    """
    rows, columns = numpy.flatnonzero(recorded.group_sizes), numpy.flatnonzero(recorded.cluster_sizes)
    pairs = recorded.exact[rows][:, columns] * numpy.sqrt(recorded.group_sizes[rows][:, None] * recorded.cluster_sizes[columns])
    left, right = (1 / numpy.sqrt(numpy.maximum(pairs.sum(axis), 1e-9)) for axis in (1, 0))
    normal = left[:, None] * pairs * right
    row_values = numpy.linalg.eigh(normal @ normal.T)[1][:, -2] if len(rows) > 1 else numpy.zeros(len(rows))
    column_values = normal.T @ row_values
    rows = rows[numpy.argsort(row_values * left, kind="stable")]
    columns = columns[numpy.argsort(column_values * right, kind="stable")]
    return replace(
        recorded,
        exact=recorded.exact[rows][:, columns],
        error_codes=recorded.error_codes[rows][:, columns],
        query_labels=_renamed(recorded.query_labels, rows, recorded.exact.shape[0]),
        key_labels=_renamed(recorded.key_labels, columns, recorded.exact.shape[1]),
    )


def _renamed(labels: numpy.ndarray, order: numpy.ndarray, count: int) -> numpy.ndarray:
    names = numpy.zeros(count, dtype=labels.dtype)
    names[order] = numpy.arange(len(order), dtype=labels.dtype)
    return names[labels]
