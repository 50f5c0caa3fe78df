"""A run record in words."""

from __future__ import annotations

from .reasons import CROSS_ATTENTION, FULL_PRECISION, OTHER_STREAM, SHORT_SEQUENCE, TOKEN_REFINER, Reason
from .record import Found, RunRecord
from .words import counted, duration

# What says nothing about why the video's own attention did not run sparse.
UNRELATED = (CROSS_ATTENTION, FULL_PRECISION, OTHER_STREAM, TOKEN_REFINER)

NEVER_CALLED = (
    "the attention override was never called. The model may bring its own attention, a cache may have skipped "
    "every step, or the MODEL of this report is not the one that the sampler used."
)


def status(run: RunRecord) -> str:
    """The run in a few words, for the node: what went wrong comes first."""
    if not run.completed:
        return "Stopped early"
    if not run.sparse_calls:
        return f"{_cause_name(run)}: nothing ran sparse"
    parts = [counted(len(run.warnings), "warning")] if run.warnings else []
    parts.append(f"{run.sparse_calls} of {_video_calls(run)} calls sparse")
    saved = run.times.saved
    if saved is not None and saved >= 0:
        parts.append(f"saved {duration(saved)} of {duration(run.seconds + saved)}")
    elif saved is not None:
        parts.append(f"{duration(-saved)} slower than dense")
    else:
        parts.append(duration(run.seconds))
    return ", ".join(parts)


def headline(run: RunRecord) -> str:
    """The run in one line, for the log."""
    parts = [f"{run.sparse_calls} of {counted(_video_calls(run), 'video attention call')} sparse"]
    if not run.completed:
        parts = ["stopped early", *parts]
    elif not run.sparse_calls:
        parts = [f"nothing ran sparse: {cause(run)}"]
    if run.density is not None:
        parts.append(f"{run.density:.1%} of the pairs exact")
    if run.completed:
        parts.append(duration(run.seconds))
    if run.times.speed_up is not None:
        parts.append(f"a sparse call {_speed(run)}")
    if run.times.saved is not None:
        parts.append(_saved(run))
    if run.warnings:
        parts.append(counted(len(run.warnings), "warning"))
    return "SVG-EAR: " + ", ".join(parts)


def report(found: Found) -> str:
    """What was found of a run in full, for the report node."""
    run = found.run
    if run is None:
        return nothing_recorded(found)
    lines = [f"WARNING: {text}" for text in warnings(run)]
    if not found.is_match:
        lines.append(f"The latent matches no recorded run of this model; this is the newest run. {_taken_over(found)}".rstrip())
    if not run.completed:
        lines.append("The run stopped early, by an error or an interrupt.")
    lines += [""] if lines else []
    lines += [*_what_ran(run), *_calls(run), *_times(run)]
    if run.state_bytes:
        lines.append(f"Memory of the kept clusters: {run.state_bytes / 2**20:.0f} MB")
    return "\n".join(lines)


def nothing_recorded(found: Found) -> str:
    """Why there is no run at all."""
    if found.taken_over_by:
        return f"No run recorded. {_taken_over(found)}"
    if found.is_patched:
        return (
            "No run recorded: no sampler has used this MODEL since its SVG-EAR Sparse Attention ran. Connect the sampler to it as well, "
            "or this node to the MODEL that the sampler uses."
        )
    return (
        "No run recorded: connect the MODEL output of SVG-EAR Sparse Attention (or a node behind it), "
        "and the LATENT of the sampler that uses it."
    )


def warnings(run: RunRecord) -> list[str]:
    """What the user should know first."""
    nothing = [f"nothing ran sparse: {cause(run)}"] if run.completed and not run.sparse_calls else []
    return [*nothing, *run.warnings]


def _taken_over(found: Found) -> str:
    name = found.taken_over_by
    return (
        f"A later node took over: connect this node to the MODEL of the {name} behind this one, of two only the last counts."
        if name
        else ""
    )


def _what_ran(run: RunRecord) -> list[str]:
    lines = [f"Model: {run.architecture or 'unknown'}, {counted(run.steps, 'step')}, {duration(run.seconds)} in the sampler"]
    if run.times.saved is not None:
        lines.append(f"The whole run: {_saved(run)}")
    if run.tokens is not None:
        lines.append(_tokens(run))
    if run.settings:
        lines.append(f"Settings: {run.settings}")
    return lines


def _tokens(run: RunRecord) -> str:
    of_size = f" ({run.size})" if run.size else ""
    if run.tokens >= run.min_tokens:
        return f"Tokens: {run.tokens:,}{of_size}, at or above the min_tokens of {run.min_tokens:,}"
    text = f"Tokens: {run.tokens:,}{of_size}, below the min_tokens of {run.min_tokens:,}"
    if run.size is None:
        return text
    # Text tokens in the sequence count too.
    larger, longer = run.size.reaching(run.min_tokens - max(run.tokens - run.size.tokens, 0))
    return f"{text}; long enough would be {larger}, or {longer}"


def _calls(run: RunRecord) -> list[str]:
    lines = [f"Sparse calls: {run.sparse_calls}"]
    if run.density is not None:
        lines.append(f"  mean density {run.density:.1%}, estimated error {run.estimated_error:.1%}")
    lines.append(f"Dense calls: {sum(run.dense_calls.values())}")
    blamed = None if run.sparse_calls or not run.completed else _cause_of(run)
    lines += [
        f"  {count} {reason.name}: {'see above' if reason == blamed else reason.sentence}" for reason, count in run.dense_calls.items()
    ]
    if run.dense_attention:
        lines.append(f"Dense calls of the video used: {_dense_attention(run)}")
    return lines


def _dense_attention(run: RunRecord) -> str:
    if len(run.dense_attention) == 1:
        return next(iter(run.dense_attention))
    return "; ".join(f"{name} ({count})" for name, count in run.dense_attention.items())


def _times(run: RunRecord) -> list[str]:
    times, lines = run.times, []
    if times.dense_steps is not None and run.dense_steps:
        share = f" ({times.dense_steps / run.seconds:.0%})" if run.seconds else ""
        lines.append(f"Dense steps: {run.dense_steps} of {run.steps}, {duration(times.dense_steps)} of {duration(run.seconds)}{share}")
    if times.sparse is not None:
        lines.append(f"Time in the sparse calls: {duration(times.sparse)}")
        if times.dense is not None:
            lines[-1] += f", in dense attention it would have been about {duration(times.dense)}"
        lines += [f"  {name} {duration(seconds)}" for name, seconds in times.stages.items()]
    if times.speed_up is not None:
        lines.append(f"A sparse call was {_speed(run)} than a dense one of this run")
    if times.once >= 0.1:
        lines.append(f"First calls, in which kernels compile: {duration(times.once)} on top, once")
    return lines


def _saved(run: RunRecord) -> str:
    saved = run.times.saved
    dense = run.seconds + saved
    change = f"about {duration(abs(saved))} {'saved' if saved >= 0 else 'lost'}"
    return f"{change} ({abs(saved) / dense:.0%} of about {duration(dense)} all dense)" if dense > 0 else change


def _speed(run: RunRecord) -> str:
    speed_up = run.times.speed_up
    faster = f"{speed_up:.1f}x faster" if speed_up >= 1 else f"{1 / speed_up:.1f}x slower"
    return f"{faster} (on a CPU, which is for trying out)" if run.on_cpu else faster


def _video_calls(run: RunRecord) -> int:
    return run.sparse_calls + sum(count for reason, count in run.dense_calls.items() if reason not in UNRELATED)


def _cause_of(run: RunRecord) -> Reason | None:
    """The likeliest reason why nothing ran sparse."""
    related = {reason: count for reason, count in run.dense_calls.items() if reason not in UNRELATED}
    return max(related, key=lambda reason: (not reason.by_design, related[reason]), default=None)


def _cause_name(run: RunRecord) -> str:
    reason = _cause_of(run)
    if reason is None:
        return "No video attention" if run.dense_calls else "Attention never called"
    if reason == SHORT_SEQUENCE and run.tokens is not None:
        return f"Too short, {run.tokens:,} of {run.min_tokens:,} tokens"
    return reason.name


def cause(run: RunRecord) -> str:
    """The likeliest reason why nothing ran sparse, with what to change."""
    if not run.dense_calls:
        return NEVER_CALLED
    reason = _cause_of(run)
    if reason is None:
        return "all attention calls were of other kinds than the video's own attention."
    return f"{reason} {reason.remedy}".rstrip()
