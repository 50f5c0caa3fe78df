from dataclasses import replace

import numpy as np
import torch
from svg_ear.kernels import Statistics
from svg_ear.nodes.recording.latents import latent_digest
from svg_ear.nodes.recording.reasons import DENSE_BLOCK, WARM_UP_STEP
from svg_ear.nodes.recording.record import ATTACHMENT, KEPT_RUNS, Recorder, Run, find_run
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


class Nested:
    """ComfyUI's type for audio and video together."""

    is_nested = True

    def __init__(self, *tensors):
        self.tensors = tensors

    def unbind(self):
        return list(self.tensors)


class Model:
    def __init__(self, recorder):
        self.attachments = {ATTACHMENT: recorder}

    def get_attachment(self, key):
        return self.attachments.get(key)


def test_audio_and_video_are_found_as_they_come():
    video, audio = torch.randn(2, 4, 3, 4, 5), torch.randn(2, 8, 2, 7)
    packed = torch.cat([video.reshape(2, 1, -1), audio.reshape(2, 1, -1)], dim=-1)
    run, recorder = Run(), Recorder()
    run.latent_shapes = [video.shape, audio.shape]
    recorder.add(run.finish(packed))
    for samples in (Nested(video, audio), packed, video, audio):
        assert find_run(Model(recorder), {"samples": samples}).is_match
    for samples in (Nested(video, audio + 1), video + 1, None, "no latent", [], [video, "audio"]):
        assert not find_run(Model(recorder), {"samples": samples}).is_match


def test_a_result_of_any_kind_ends_a_run_well():
    for result in ([torch.ones(1, 3), torch.ones(1, 2)], [], "no latent", {"samples": 1}, Nested(torch.ones(1, 2), torch.zeros(1, 2))):
        assert Run().finish(result).completed
    recorder = Recorder()
    recorder.add(Run().finish("no latent"))
    assert recorder.find("no latent") is None


def test_calls_that_are_not_finite_are_counted_and_left_out():
    run = Run()
    for density in (0.1, torch.nan, 0.3, torch.inf):
        run.count_sparse(statistics(density), place())
    record = run.finish(torch.ones(3))
    assert abs(record.density - 0.2) < 1e-6 and record.sparse_calls == 4
    assert len(record.warnings) == 1 and record.warnings[0].startswith("2 of the sparse calls were not finite")
    (figures,) = record.trace.sparse.values()
    assert np.isfinite(figures).all()
    alone = Run()
    alone.count_sparse(statistics(torch.nan), place())
    assert alone.finish(torch.ones(3)).density is None


def test_warnings_are_kept_once():
    run = Run()
    assert [run.warn("twice"), run.warn("twice"), run.warn("other")] == [True, False, True]
    assert run.finish(torch.ones(1)).warnings == ("twice", "other")
