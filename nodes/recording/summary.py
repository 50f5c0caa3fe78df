"""A run record in words."""

from __future__ import annotations

from .reasons import CROSS_ATTENTION, FULL_PRECISION, OTHER_STREAM, TOKEN_REFINER, Reason
from .record import RunRecord

# What says nothing about why the video's own attention did not run sparse.
UNRELATED = (CROSS_ATTENTION, FULL_PRECISION, OTHER_STREAM, TOKEN_REFINER)

NEVER_CALLED = (
    "the attention override was never called. The model may bring its own attention, a cache may have skipped "
    "every step, or the MODEL of this report is not the one that the sampler used."
)


def headline(run: RunRecord) -> str:
    """The run in one line, for the log."""
    dense = sum(run.dense_calls.values())
    parts = [f"{run.sparse_calls} attention calls sparse, {dense} dense"]
    if run.density is not None:
        parts.append(f"density {run.density:.1%}")
    parts.append(f"{run.seconds:.1f} s" if run.completed else "stopped early")
    if run.speed_up is not None:
        parts.append(f"a sparse call {_speed(run)}")
    if run.completed and not run.sparse_calls:
        parts.append(f"nothing ran sparse: {_cause(run)}")
    return "SVG-EAR: " + ", ".join(parts)


def report(run: RunRecord | None, is_match: bool = True) -> str:
    """The run in full, for the report node; ``is_match`` says whether it made the latent that was asked about."""
    if run is None:
        return (
            "No run recorded: connect the MODEL output of SVG-EAR Sparse Attention (or a node behind it), "
            "and the LATENT of the sampler that uses it."
        )
    lines = []
    if not is_match:
        lines += ["The latent matches no recorded run of this model; this is the newest run.", ""]
    if not run.completed:
        lines += ["The run stopped early, by an error or an interrupt.", ""]
    elif not run.sparse_calls:
        lines += [f"WARNING: nothing ran sparse: {_cause(run)}", ""]

    lines.append(f"Model: {run.architecture or 'unknown'}, {run.steps} steps, {run.seconds:.1f} s in the sampler")
    lines.append(f"Sparse calls: {run.sparse_calls}")
    if run.density is not None:
        lines.append(f"  mean density {run.density:.1%}, estimated error {run.estimated_error:.1%}")
    lines.append(f"Dense calls: {sum(run.dense_calls.values())}")
    lines += [f"  {count} {reason}" for reason, count in run.dense_calls.items()]
    if run.stage_seconds:
        lines.append(f"Time in the sparse calls: {sum(run.stage_seconds.values()):.2f} s")
        lines += [f"  {name} {seconds:.2f} s" for name, seconds in run.stage_seconds.items()]
    if run.speed_up is not None:
        lines.append(f"A sparse call was {_speed(run)} than a dense one of this run")
    if run.state_bytes:
        lines.append(f"Memory of the kept clusters: {run.state_bytes / 2**20:.0f} MB")
    return "\n".join(lines)


def _speed(run: RunRecord) -> str:
    faster = f"{run.speed_up:.1f}x faster" if run.speed_up >= 1 else f"{1 / run.speed_up:.1f}x slower"
    return f"{faster} (on a CPU, which is for trying out)" if run.on_cpu else faster


def _cause(run: RunRecord) -> str:
    """The likeliest reason why nothing ran sparse, with what to change."""
    related = {reason: count for reason, count in run.dense_calls.items() if reason not in UNRELATED}
    if not run.dense_calls:
        return NEVER_CALLED
    if not related:
        return "all attention calls were of other kinds than the video's own attention."

    def weight(reason: Reason) -> tuple[bool, int]:
        return not reason.by_design, related[reason]

    reason = max(related, key=weight)
    return f"{reason} {reason.remedy}".rstrip()
