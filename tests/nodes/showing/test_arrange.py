from dataclasses import replace

import numpy as np
import pytest
from routing_maps import routing_map
from svg_ear.nodes.showing.arrange import arranged


def test_the_diagonal_is_found_again():
    found = arranged(routing_map(groups=20, clusters=40, grid=(5, 20, 20)))
    rows, columns = np.nonzero(found.exact)
    correlation = np.corrcoef(rows, columns)[0, 1]
    assert abs(correlation) > 0.95


def test_only_the_order_changes():
    before = routing_map()
    after = arranged(before)
    assert after.density == pytest.approx(before.density)
    for name in ("exact", "error_codes"):
        first, second = (getattr(recorded, name)[recorded.query_labels, recorded.key_labels] for recorded in (before, after))
        assert np.array_equal(first, second)


def test_empty_groups_and_clusters_are_left_out():
    before = routing_map()
    after = arranged(replace(before, query_labels=before.query_labels // 2, key_labels=np.zeros_like(before.key_labels)))
    assert after.exact.shape[1] == 1 and after.group_sizes.min() > 0
