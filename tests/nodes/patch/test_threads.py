"""Core's CFG split: threads that share one patch, each with a device of its own, under no_grad."""

import threading
from dataclasses import replace

import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, qkv
from svg_ear import kernels
from svg_ear.nodes.patch import override
from svg_ear.nodes.recording.reasons import Reason

BLOCKS = 4
PATIENCE = 60


class Interrupted(Exception):
    """ComfyUI's, when the user stops a run."""


class Split(Harness):
    """A model whose conditionings run in threads of their own; the tensors stay on the CPU, the keys of the states tell devices apart."""

    def __init__(self, monkeypatch):
        super().__init__()
        self._place, decide = threading.local(), override.decide

        def on_device(*args):
            found = decide(*args)
            return found if isinstance(found, Reason) else replace(found, device=self.device)

        monkeypatch.setattr(override, "decide", on_device)

    @property
    def device(self):
        """Of the thread that asks."""
        return torch.device("cpu", self._place.number)

    def start(self, number, body):
        """Run ``body`` in the thread of a device."""

        def run():
            self._place.number = number
            with torch.no_grad():
                body()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def step(self, step, before=lambda block: None):
        """One evaluation in the thread of a device; ``before`` is called ahead of each block."""

        def blocks(attention):
            for block in range(BLOCKS):
                before(block)
                attention(*qkv(), HEADS, block=block)

        self.evaluate(blocks, step=step, uuids=[str(self.device)])


def finished(*threads):
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_out_of_memory_on_one_device_leaves_the_clusters_of_the_other(monkeypatch):
    played, sparse_attention = Split(monkeypatch), kernels.sparse_attention
    meeting, fails, seen = threading.Barrier(2, timeout=PATIENCE), threading.Event(), {}

    def short_of_memory(*args, **kwargs):
        if played.device.index == 1 and fails.is_set():
            fails.clear()
            raise torch.OutOfMemoryError("no memory left")
        return sparse_attention(*args, **kwargs)

    def body():
        number = played.device.index
        played.step(2)
        meeting.wait()
        if number == 1:
            fails.set()
            played.step(3, lambda block: block == 1 and seen.update(devices=held(played)))
        meeting.wait()
        played.step(4)

    monkeypatch.setattr(kernels, "sparse_attention", short_of_memory)
    record = played.sample(lambda: finished(*(played.start(number, body) for number in (0, 1))))
    # The first block of device 1 failed: its own clusters went, those of device 0 stayed.
    assert seen["devices"] == [torch.device("cpu", 0)] * BLOCKS
    assert counts(record) == {"out-of-memory": 1} and record.sparse_calls == 5 * BLOCKS - 1
    assert len(played.patch.states) == 0


def held(played):
    return [key.device for key in played.patch.states._states]


def test_an_interrupt_in_one_thread_leaves_nothing_of_the_other_behind(monkeypatch):
    """ComfyUI hands on the error of one device at once, while another is still computing."""
    played = Split(monkeypatch)
    reached, over, threads = threading.Event(), threading.Event(), []

    def goes_on(block):
        if block == 2:
            reached.set()
            assert over.wait(PATIENCE)

    def run():
        played.step_of_main = played.start(0, lambda: played.step(2))
        threads.append(played.start(1, lambda: played.step(2, goes_on)))
        finished(played.step_of_main)
        assert reached.wait(PATIENCE) and len(played.patch.states) == BLOCKS + 2
        raise Interrupted

    with pytest.raises(Interrupted):
        played.sample(run)
    idle = played.patch.run
    over.set()
    finished(*threads)
    record = played.patch.recorder.newest()
    assert not record.completed and record.sparse_calls == BLOCKS + 2
    assert len(played.patch.states) == 0 and idle.trace.sparse_calls == 0 and played.dense_calls == 2
    # The next run is as any other.
    assert played.sample(lambda: finished(played.start(0, lambda: played.step(2)))).sparse_calls == BLOCKS
