import torch
from svg_ear.kernels import Statistics
from svg_ear.nodes.reasons import DENSE_BLOCK, WARM_UP_STEP
from svg_ear.nodes.record import KEPT_RUNS, Recorder, Run, latent_digest


def statistics(density):
    shares = torch.full((1, 2), density)
    return Statistics(density=shares, group_shares=shares[..., None], estimated_error=shares / 2)


def test_counts_and_means():
    run = Run()
    for density in (0.1, 0.3):
        run.count_sparse(statistics(density))
    assert [run.count_dense(reason) for reason in (WARM_UP_STEP, DENSE_BLOCK, WARM_UP_STEP)] == [True, True, False]
    record = run.finish(torch.ones(3))
    assert record.sparse_calls == 2
    assert record.dense_calls == {WARM_UP_STEP: 2, DENSE_BLOCK: 1}
    assert abs(record.density - 0.2) < 1e-6 and abs(record.estimated_error - 0.1) < 1e-6


def test_a_run_that_failed_has_no_numbers():
    run = Run()
    run.count_sparse(statistics(0.1))
    record = run.finish(None)
    assert not record.completed and record.density is None and record.latent is None


def test_runs_are_found_by_their_latent_and_forgotten_in_time():
    recorder = Recorder()
    assert recorder.newest() is None
    latents = [torch.full((2, 3), float(value)) for value in range(KEPT_RUNS + 1)]
    for latent in latents:
        recorder.add(Run().finish(latent))
    assert recorder.find(latents[0]) is None
    assert recorder.find(latents[1]).latent == latent_digest(latents[1])
    assert recorder.newest() is recorder.find(latents[-1])


def test_digest_survives_half_precision():
    latent = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert latent_digest(latent) == latent_digest(latent.half())
    assert latent_digest(latent) != latent_digest(latent + 1)
