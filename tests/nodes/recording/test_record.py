from dataclasses import replace

import numpy as np
import torch
from svg_ear.kernels import Statistics
from svg_ear.nodes.recording.reasons import DENSE_BLOCK, WARM_UP_STEP
from svg_ear.nodes.recording.record import KEPT_RUNS, Recorder, Run, latent_digest
from svg_ear.nodes.recording.trace import Place, RoutingMap, TraceRecord


def statistics(density):
    shares = torch.full((1, 2), density)
    return Statistics(density=shares, group_shares=shares[..., None], estimated_error=shares / 2)


def place(layer=1, step=2):
    return Place(layer, 4, step, (1, 2, 3), ("cond",), (3, 4, 8))


def test_counts_and_means():
    run = Run()
    for density in (0.1, 0.3):
        run.count_sparse(statistics(density), place())
    assert [run.count_dense(reason) for reason in (WARM_UP_STEP, DENSE_BLOCK, WARM_UP_STEP)] == [True, True, False]
    record = run.finish(torch.ones(3))
    assert record.sparse_calls == 2
    assert record.dense_calls == {WARM_UP_STEP: 2, DENSE_BLOCK: 1}
    assert abs(record.density - 0.2) < 1e-6 and abs(record.estimated_error - 0.1) < 1e-6


def test_a_run_that_failed_has_no_numbers():
    run = Run()
    run.count_sparse(statistics(0.1), place())
    record = run.finish(None)
    assert not record.completed and record.density is None and record.latent is None and not record.trace.sparse
    assert record.sparse_calls == 1 and run.trace.sparse_calls == 0


def test_runs_are_found_by_their_latent_and_forgotten_in_time():
    recorder = Recorder()
    assert recorder.newest() is None
    latents = [torch.full((2, 3), float(value)) for value in range(KEPT_RUNS + 1)]
    for latent in latents:
        recorder.add(Run().finish(latent))
    assert recorder.find(latents[0]) is None
    assert recorder.find(latents[1]).latent == latent_digest(latents[1])
    assert recorder.newest() is recorder.find(latents[-1]) is recorder.runs()[0]


def test_maps_of_older_runs_make_room():
    block = np.zeros((10, 10), dtype=bool)
    labels = np.zeros(50, dtype=np.int16)
    recorded = RoutingMap(1, 2, "cond", 0, block, block.astype(np.uint8), labels, labels, None)
    recorder = Recorder(limit=2 * recorded.nbytes())
    for value in range(3):
        run = Run()
        run.count_sparse(statistics(0.1), place())
        record = run.finish(torch.full((2,), float(value)))
        recorder.add(replace(record, trace=TraceRecord(4, record.trace.sparse, {}, (recorded,))))
    newest, middle, oldest = recorder.runs()
    assert len(newest.trace.maps) == len(middle.trace.maps) == 1
    assert oldest.trace.maps == () and oldest.trace.maps_left_out == 1 and len(oldest.trace.sparse) == 1


def test_digest_survives_half_precision():
    latent = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert latent_digest(latent) == latent_digest(latent.half())
    assert latent_digest(latent) != latent_digest(latent + 1)
