import pytest
import torch
from svg_ear.kernels.types import Clusters
from triton_cases import DEVICE

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.tiles import cut, cut_in_two  # noqa: E402

SIZES = [[[0, 5, 64, 65, 0, 130, 1, 0], [265, 0, 0, 0, 0, 0, 0, 0]]]


def clusters_of(sizes):
    sizes = torch.tensor(sizes, device=DEVICE)
    labels = torch.stack([torch.arange(sizes.shape[2], device=DEVICE).repeat_interleave(head) for head in sizes[0]])[None]
    return Clusters(labels, torch.zeros(*sizes.shape, 4, device=DEVICE), sizes, labels.argsort(-1))


@pytest.mark.parametrize("fewest", [0, 1])
@pytest.mark.parametrize("sizes", [SIZES, [[[1] * 300]]], ids=["ragged", "many"])
def test_tiles_cover_every_cluster_once(sizes, fewest):
    clusters = clusters_of(sizes)
    tiles = cut(clusters, 64, fewest)
    for head, counts in enumerate(sizes[0]):
        expected, start = [], 0
        for owner, size in enumerate(counts):
            assert tiles.bounds[0, head, owner] == len(expected)
            expected += [(owner, start + row, start + size) for row in range(0, size, 64)] or [(owner, start, start)] * fewest
            start += size
        assert tiles.bounds[0, head, -1] == len(expected)
        found = [tensor[0, head].tolist() for tensor in (tiles.owners, tiles.starts, tiles.stops)]
        assert list(zip(*found))[: len(expected)] == expected
        assert set(found[0][len(expected) :]) <= {len(counts)}


@pytest.mark.parametrize("sizes", [SIZES, [[[1] * 300]]], ids=["ragged", "many"])
def test_rests_that_fill_half_a_tile_at_most_are_cut_apart(sizes):
    clusters = clusters_of(sizes)
    tiles, rests = cut_in_two(clusters, 64, 32)
    for head, counts in enumerate(sizes[0]):
        covered = []
        for part, height in ((tiles, 64), (rests, 32)):
            for owner, start, stop in zip(*(tensor[0, head].tolist() for tensor in (part.owners, part.starts, part.stops))):
                if owner < len(counts):
                    covered += [(row, owner) for row in range(start, min(stop, start + height))]
                    assert height == 32 or stop - start > 32
        assert sorted(covered) == list(enumerate(clusters.sorted_labels[0, head].tolist()))


def test_some_heads_are_cut_as_with_the_others():
    clusters = clusters_of(SIZES)
    whole, part = cut(clusters, 64), cut(clusters.parts(1)[1], 64)
    for name in ("owners", "starts", "stops", "bounds"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:, 1:])
