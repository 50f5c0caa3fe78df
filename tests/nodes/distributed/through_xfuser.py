"""Sparse attention through xFuser in several processes, against one process: ``python through_xfuser.py FOLDER``.

Writes the largest differences of all ranks to FOLDER/differences.json, by number of ranks and case.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

# All before torch is asked for anything: the ranks are forks of this process, so that xFuser is imported once.
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(folder) for folder in (HERE, HERE / "engine", HERE.parents[2])]

import torch  # noqa: E402
import torch.distributed  # noqa: E402
import torch.multiprocessing  # noqa: E402

from benchmarks import ulysses  # noqa: E402
from benchmarks.ulysses import part  # noqa: E402

usp = ulysses.load_xfuser()

import raylight.forwards  # noqa: E402
from models import DIM, HEADS, HunyuanVideo, Model, WanModel  # noqa: E402
from svg_ear import kernels  # noqa: E402
from svg_ear.nodes.distributed import worker  # noqa: E402
from svg_ear.nodes.distributed.gathered import Gathered  # noqa: E402
from svg_ear.nodes.distributed.xfuser import KEY, SparseCall, register  # noqa: E402
from svg_ear.nodes.patch.options import Options  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from xfuser.core.distributed import get_sp_group  # noqa: E402
from xfuser.core.distributed.attention_backend import AttentionBackendType  # noqa: E402

BACKEND = AttentionBackendType.SDPA_MATH
TEXT, VIDEO, GRID, SHAPE = 5, 63, (3, 3, 7), (1, 16, 3, 6, 14)
STREAMS = {"wan": (VIDEO,), "hunyuan": (TEXT, VIDEO)}
SETTINGS = kernels.Settings(density=0.2)


def held(tensor, streams, rank, ranks):
    """The parts of all ``streams`` of ``[B, tokens, ...]`` that a rank holds."""
    return torch.cat([part(stream, rank, ranks) for stream in tensor.split(streams, dim=1)], dim=1)


def drawn(batch, tokens, step):
    """q, k and v ``[B, tokens, H, D]``, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.randn(batch, tokens, HEADS, DIM, generator=generator) for _ in range(3))


def difference(one, other):
    return (one - other).abs().max().item()


def calls(name, batch, rank, ranks):
    """Two steps of calls through ``USP``, the clusters of the first kept."""
    streams = STREAMS[name]
    layout = kernels.SequenceLayout(range(sum(streams) - VIDEO, sum(streams)), tuple(range(n) for n in streams[:-1]))
    owners = [batch - 1] * batch
    here, alone, worst = kernels.ClusterState(), kernels.ClusterState(), 0.0
    for step in (0, 1):
        tensors = drawn(batch, sum(streams), step)
        whole = kernels.sparse_attention(
            *(tensor.transpose(1, 2) for tensor in tensors), SETTINGS, layouts=layout, state=alone, owners=owners
        )
        call = SparseCall(Gathered(streams, ranks), SETTINGS, layout, here, owners)
        mine = [held(tensor, streams, rank, ranks).transpose(1, 2) for tensor in tensors]
        output = usp.USP(*mine, backend=BACKEND, attention_kwargs={KEY: call})
        worst = max(worst, difference(output.transpose(1, 2), held(whole.output.transpose(1, 2), streams, rank, ranks)))
        assert call.statistics.density.shape == (batch, HEADS // ranks)
    return worst


def dense_calls(rank, ranks):
    """A call that says nothing of its tokens goes on to the backend."""
    tensors = drawn(1, 64, 0)
    output = usp.USP(*(part(tensor, rank, ranks).transpose(1, 2) for tensor in tensors), backend=BACKEND)
    whole = scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in tensors)).transpose(1, 2)
    return difference(output.transpose(1, 2), part(whole, rank, ranks))


def refused(rank, ranks):
    """Joint tensors are queries that every rank repeats: named, not computed wrong."""
    q, k, v = (part(tensor, rank, ranks).transpose(1, 2) for tensor in drawn(1, VIDEO, 0))
    joint = {f"joint_{name}": torch.randn(1, HEADS, TEXT, DIM) for name in ("query", "key", "value")}
    try:
        usp.USP(q, k, v, backend=BACKEND, joint_strategy="rear", **joint, attention_kwargs={KEY: SparseCall(Gathered((VIDEO,), ranks))})
    except ValueError as error:
        return 0.0 if "every rank repeats" in str(error) else 1.0
    return 1.0


def ring(rank, ranks):
    """With the ranks as a ring each has a part of the keys at a time: named as well."""
    group = get_sp_group()
    group.ulysses_world_size, group.ulysses_rank, group.ring_world_size, group.ring_rank = 1, 0, ranks, rank
    usp.PROCESS_GROUP.RING_PG = group.device_group
    q, k, v = (part(tensor, rank, ranks).transpose(1, 2) for tensor in drawn(1, 64, 0))
    try:
        usp.USP(q, k, v, backend=BACKEND, attention_kwargs={KEY: SparseCall(Gathered((64,), ranks))})
    except ValueError as error:
        return 0.0 if f"ring_degree is {ranks}" in str(error) else 1.0
    return 1.0


def model_run(name, split, rank, ranks):
    """A model in a worker of raylight, with exact blocks only: its output, of all tokens."""
    torch.manual_seed(0)
    diffusion_model = {"wan": WanModel, "hunyuan": HunyuanVideo}[name]()
    if name == "wan":
        raylight.forwards.inject(diffusion_model)
    else:
        raylight.forwards.inject_double(diffusion_model)
    degree = ranks if split else 1
    worker.degrees = lambda: (degree, 1)
    exchange = raylight.forwards.Exchange
    exchange.there = staticmethod(lambda t: usp._ft_c_input_all_to_all(t.transpose(1, 2)).transpose(1, 2) if split else t)
    exchange.back = staticmethod(lambda t: usp._ft_c_output_all_to_all(t.transpose(1, 2)).transpose(1, 2) if split else t)
    model = worker.install(
        Model(diffusion_model), Options(density=1.0, warm_up_density=0.0, dense_first_steps=0, dense_blocks="", min_tokens=0)
    )
    streams = STREAMS[name]
    tokens = torch.randn(2, sum(streams), HEADS * DIM, generator=torch.Generator().manual_seed(1))
    mine = [part(stream, rank, degree) if split else stream for stream in tokens.split(streams, dim=1)]

    def evaluate(x, t, concat, cross, control, options, **kwargs):
        return diffusion_model.run(*reversed(mine), options)

    (apply_model,) = model.get_wrappers("apply_model", "svg_ear")
    evaluate.class_obj = SimpleNamespace(diffusion_model=diffusion_model, model_sampling=SimpleNamespace(percent_to_sigma=lambda p: 1 - p))
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    given = {"sample_sigmas": sigmas, "sigmas": sigmas[:1], "cond_or_uncond": [1, 0], "uuids": ["u", "c"]}
    given |= model.model_options["transformer_options"]
    output = apply_model(evaluate, torch.zeros(2, *SHAPE[1:]), None, None, torch.zeros(2, TEXT, 8), None, given)
    patch = apply_model.__self__
    assert patch.run.trace.sparse_calls == 2, patch.run.finish(None).dense_calls
    if not split:
        return output
    # As raylight does behind the last block: all parts of a stream, without the padding.
    outputs = []
    for stream, whole in zip(output.split([each.shape[1] for each in mine], dim=1), streams):
        gathered = [torch.empty_like(stream.contiguous()) for _ in range(ranks)]
        torch.distributed.all_gather(gathered, stream.contiguous(), group=get_sp_group().device_group)
        outputs.append(torch.cat(gathered, dim=1)[:, :whole])
    return torch.cat(outputs, dim=1)


def measure(rank, ranks, folder):
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting-{ranks}", rank=rank, world_size=ranks)
    ulysses.join_xfuser(rank, ranks)
    register(BACKEND)
    found = {f"calls {name}, batch {batch}": calls(name, batch, rank, ranks) for name in STREAMS for batch in (1, 2)}
    found |= {"dense calls": dense_calls(rank, ranks), "joint tensors": refused(rank, ranks)}
    for name in STREAMS:
        found[f"model {name}"] = difference(model_run(name, True, rank, ranks), model_run(name, False, rank, ranks))
    found["ring"] = ring(rank, ranks)
    Path(f"{folder}/{ranks}-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder, all_found = sys.argv[1], {}
    for ranks in (2, 4):
        torch.multiprocessing.start_processes(measure, args=(ranks, folder), nprocs=ranks, start_method="fork")
        of_ranks = [json.loads(Path(f"{folder}/{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        all_found[ranks] = {case: max(found[case] for found in of_ranks) for case in of_ranks[0]}
    Path(folder, "differences.json").write_text(json.dumps(all_found, indent=1))
    sys.stdout.flush()
    os._exit(0)
