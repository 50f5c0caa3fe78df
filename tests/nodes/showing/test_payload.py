import base64
import json
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from routing_maps import routing_map, run_record
from svg_ear.nodes.recording.record import Found
from svg_ear.nodes.recording.trace import TraceRecord
from svg_ear.nodes.showing.coarse import Totals
from svg_ear.nodes.showing.payload import MOST_BYTES, payload


def found_of(*runs):
    return Found(runs, runs[0], True, True)


def unpack(packed):
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(raw, dtype=f"<u{packed['bits'] // 8}").reshape(packed["shape"])


def test_figures_survive():
    run = run_record()
    (found,) = payload(found_of(run), run.trace.maps[1])["runs"]
    for (branch, layer, step), figures in run.trace.sparse.items():
        for name, values in zip(("density", "error"), figures):
            table = found["branches"][branch][name]
            assert unpack(table)[layer, step] / 254 * table["top"] == pytest.approx(values, abs=table["top"] / 250)
    dense = unpack(found["dense"])
    assert [found["reasons"][code]["name"] for code in (dense[1, 0], dense[0, 1])] == ["warm-up-step", "dense-block"]
    assert dense[1, 1] == 255 and unpack(found["branches"]["cond"]["density"])[1, 0, 0] == 255


def test_maps_survive_and_the_chosen_one_comes_first():
    run = run_record()
    chosen = run.trace.maps[3]
    found = payload(found_of(run), chosen)
    first = found["runs"][0]["maps"][0]
    assert (
        found["chosen"]
        == {name: first[name] for name in ("layer", "step", "branch", "head")}
        == {"layer": 3, "step": 5, "branch": "cond", "head": 0}
    )
    assert len(found["runs"][0]["maps"]) == len(run.trace.maps) and found["runs"][0]["mapsLeftOut"] == 0
    exact, keys, queries = (unpack(first[name]).astype(float) for name in ("exact", "keys", "queries"))
    assert queries @ (exact / 255) @ keys / queries.sum() ** 2 == pytest.approx(chosen.density, abs=1e-6)
    assert np.array_equal(np.bincount(unpack(first["keyLabels"])), keys) and first["grid"] == list(chosen.grid)


def test_merging_keeps_the_totals():
    fine = routing_map(groups=100, clusters=300, grid=(5, 20, 20))
    coarse = Totals.of(fine, 20, 40)
    assert coarse.exact.shape[0] <= 20 and coarse.exact.shape[1] <= 40
    assert coarse.groups.sum() <= 100 and coarse.group_sizes.sum() == coarse.cluster_sizes.sum() == 2000
    density = coarse.group_sizes @ (coarse.exact / 255) @ coarse.cluster_sizes / 2000**2
    assert density == pytest.approx(fine.density, abs=0.002)
    assert np.array_equal(np.bincount(coarse.key_labels), coarse.cluster_sizes)


def test_long_runs_stay_small():
    random = np.random.default_rng(0)
    noisy = routing_map(groups=300, clusters=1000, grid=(21, 45, 80))
    noisy.error_codes[:] = random.integers(0, 255, noisy.error_codes.shape)
    noisy.exact[:] = random.random(noisy.exact.shape) < 0.1
    run = run_record((noisy,) * 24, layers=40, steps=50, heads=40)
    data = payload(found_of(*[run] * 8), None)
    assert len(json.dumps(data)) <= MOST_BYTES and 0 < len(data["runs"][0]["maps"])
    assert len(data["runs"][0]["maps"]) + data["runs"][0]["mapsLeftOut"] == 24


def test_runs_without_anything_sparse():
    nothing = payload(Found(), None)
    assert nothing["runs"] == [] and "No run recorded" in nothing["missing"]
    run = run_record((), trace=TraceRecord())
    (found,) = payload(found_of(run), None)["runs"]
    assert found["layers"] == 0 and found["maps"] == [] and found["branches"] == {} and found["headline"]


def test_tokens_without_a_place_are_not_sent():
    run = run_record((routing_map(grid=(3, 8, 10)),))
    run = run_record((replace(run.trace.maps[0], grid=None),))
    (found,) = payload(found_of(run), None)["runs"]
    assert found["maps"][0]["grid"] is None and unpack(found["maps"][0]["keyLabels"]).size == 0


def test_merging_twice_is_merging_once():
    fine = routing_map(groups=100, clusters=300, grid=(5, 20, 20))
    once, twice = Totals.of(fine, 10, 10), Totals.of(fine, 60, 100).merged(10, 10)
    assert once.density == pytest.approx(twice.density, abs=1e-6) and once.density == pytest.approx(fine.density, abs=1e-6)
    assert twice.groups.sum() == once.groups.sum() and twice.group_sizes.sum() == once.group_sizes.sum()


def test_large_maps_are_packed_in_time():
    maps = tuple(routing_map(head=head, groups=2000, clusters=4000, grid=(21, 45, 80), seed=head) for head in range(20))
    run = run_record(maps)
    # Of this process alone: the machine may be busy.
    began = time.process_time()
    assert len(payload(found_of(run), maps[0])["runs"][0]["maps"]) == 20
    assert time.process_time() - began < 4


def test_numbers_that_are_not_finite_are_said_and_not_sent():
    run = run_record()
    broken = {place: figures.copy() for place, figures in run.trace.sparse.items()}
    broken["cond", 1, 2][1, 0], broken["cond", 3, 4][:], broken["uncond", 2, 2][1, 1] = np.nan, np.inf, -np.inf
    run = replace(run, trace=replace(run.trace, sparse=broken), density=None, estimated_error=None)
    data = json.loads(json.dumps(payload(found_of(run), None), allow_nan=False))
    assert data["runs"][0]["notFinite"] == [[1, 2], [2, 2], [3, 4]]
    table = unpack(data["runs"][0]["branches"]["cond"]["error"])
    assert table[1, 2, 0] == 255 and table[1, 2, 1] < 255 and (table[3, 4] == 255).all()
