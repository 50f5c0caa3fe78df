import math
from dataclasses import replace

import pytest
import torch
from routing_maps import run_record
from svg_ear.nodes.recording.times import RunTimes
from svg_ear.nodes.showing.compare import GAP, Closeness, comparison, side_by_side


def clip(value=0.5, frames=3):
    return torch.full((frames, 4, 6, 3), value)


def test_psnr_is_that_of_its_formula():
    other = clip()
    other[1] += 0.1
    found = Closeness.of(clip(), other)
    assert found.psnr == pytest.approx(-10 * math.log10(0.01 / 3)) and found.worst == pytest.approx(20, abs=1e-4)
    assert (found.worst_frame, found.frames) == (2, 3)
    assert found.in_words() == "PSNR 24.8 dB against dense (3 frames; worst frame 2, 20.0 dB)"


def test_equal_and_broken_clips():
    assert Closeness.of(clip(), clip()).in_words() == "Identical in all pixels (3 frames)"
    broken = clip()
    broken[0, 0, 0, 0] = torch.nan
    assert "not finite" in Closeness.of(clip(), broken).in_words()
    with pytest.raises(ValueError, match="dense is 6 x 4, 3 frames and sparse is 6 x 4, 1 frame"):
        Closeness.of(clip(), clip(frames=1))


def test_both_lie_beside_each_other():
    image = side_by_side(clip(0.2), clip(0.8).double())
    assert image.shape == (3, 4, 12 + GAP, 3)
    assert (image[:, :, :6] == 0.2).all() and image[:, :, -6:].min() == pytest.approx(0.8)


def test_times_leave_loading_out():
    closeness = Closeness.of(clip(), clip(0.6))
    dense = run_record(seconds=110.0, loading=50.0, sparse_calls=0)
    sparse = run_record(seconds=41.0, loading=1.0, times=RunTimes(once=5.0))
    line, text = comparison(closeness, dense, sparse)
    assert line == "PSNR 20.0 dB, 1.50x as fast"
    assert "Dense: 1 min 00 s, sparse: 40.0 s: sparse 1.50x as fast" in text and "5.0 s for first calls" in text and "WARNING" not in text
    slower = comparison(closeness, sparse, replace(dense, sparse_calls=3, steps=9))[1]
    assert "1.50x as slow" in slower and "the dense run has sparse calls" in slower and "6 steps and the sparse one 9" in slower
    assert "connect MODEL and LATENT" in comparison(closeness, None, sparse)[1]
    nothing = comparison(closeness, dense, replace(sparse, sparse_calls=0))[1]
    assert "WARNING: nothing ran sparse" in nothing
