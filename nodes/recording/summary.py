"""A run record in words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .reasons import CROSS_ATTENTION, FULL_PRECISION, GUIDE_QUERIES, OTHER_STREAM, SHORT_SEQUENCE, TOKEN_REFINER, Reason
from .record import Found, RunRecord
from .words import Joined, Text, counted, duration

# What says nothing about why the video's own attention did not run sparse.
UNRELATED = (CROSS_ATTENTION, FULL_PRECISION, GUIDE_QUERIES, OTHER_STREAM, TOKEN_REFINER)

NEVER_CALLED = Text(
    "the attention override was never called. The model may bring its own attention, a cache may have skipped "
    "every step, or the MODEL of this report is not the one that the sampler used."
)


def status(run: RunRecord) -> str:
    """The run in a few words, for the node: what went wrong comes first."""
    if not run.completed:
        return Text("Stopped early")
    if not run.sparse_calls:
        return Text("{cause}: nothing ran sparse", cause=_cause_name(run))
    parts = [counted(len(run.warnings), "warning")] if run.warnings else []
    parts.append(Text("{sparse} of {calls} calls sparse", sparse=run.sparse_calls, calls=_video_calls(run)))
    saved = run.times.saved
    if saved is not None and saved >= 0:
        parts.append(Text("saved {time} of {dense}", time=duration(saved), dense=duration(run.seconds + saved)))
    elif saved is not None:
        parts.append(Text("{time} slower than dense", time=duration(-saved)))
    else:
        parts.append(duration(run.seconds))
    return Joined(", ", parts)


def headline(run: RunRecord) -> str:
    """The run in one line, for the log."""
    parts = [Text("{sparse} of {calls} sparse", sparse=run.sparse_calls, calls=counted(_video_calls(run), "video attention call"))]
    if not run.completed:
        parts = [Text("stopped early"), *parts]
    elif not run.sparse_calls:
        parts = [Text("nothing ran sparse: {cause}", cause=cause(run))]
    if run.density is not None:
        parts.append(Text("{share} of the pairs exact", share=f"{run.density:.1%}"))
    if run.completed:
        parts.append(duration(run.seconds))
    if run.times.speed_up is not None:
        parts.append(Text("a sparse call {speed}", speed=_speed(run)))
    if run.times.saved is not None:
        parts.append(_saved(run))
    if run.warnings:
        parts.append(counted(len(run.warnings), "warning"))
    return Text("SVG-EAR: {facts}", facts=Joined(", ", parts))


def report(found: Found) -> str:
    """What was found of a run in full, for the report node."""
    run = found.run
    if run is None:
        return nothing_recorded(found)
    lines = [warned(text) for text in warnings(run)]
    if not found.is_match:
        lines.append(_sentences(Text("The latent matches no recorded run of this model; this is the newest run."), _taken_over(found)))
    if not run.completed:
        lines.append(Text("The run stopped early, by an error or an interrupt."))
    lines += [""] if lines else []
    lines += [*_what_ran(run), *_calls(run), *_times(run)]
    if run.state_bytes:
        lines.append(Text("Memory of the kept clusters: {size} MB", size=f"{run.state_bytes / 2**20:.0f}"))
    return Joined("\n", lines)


def report_of_workers(found: Sequence[Found]) -> str:
    """What was found of a run in several workers, each with some of the heads: the first in full, the others in a line."""
    if not any(each.run for each in found):
        return Text(
            "No run recorded: put SVG-EAR for raylight between the loader and the sampler of raylight, and connect the ray_actors and the "
            "latent of that sampler to this node."
        )
    lines = [report(found[0])]
    for number, other in enumerate(found[1:], start=1):
        lines.append(Text("GPU {number}: {text}", number=number, text=headline(other.run) if other.run else nothing_recorded(other)))
        lines += [Text("GPU {number}: {text}", number=number, text=warned(text)) for text in (other.run.warnings if other.run else ())]
    return Joined("\n", lines)


def nothing_recorded(found: Found) -> str:
    """Why there is no run at all."""
    if found.taken_over_by:
        return _sentences(Text("No run recorded."), _taken_over(found))
    if found.is_patched:
        return _sentences(
            Text(
                "No run recorded: no sampler has used this MODEL since its SVG-EAR Sparse Attention ran. Connect the sampler to it as "
                "well, or this node to the MODEL that the sampler uses."
            ),
            _raylight(),
        )
    return Text(
        "No run recorded: connect the MODEL output of SVG-EAR Sparse Attention (or a node behind it), "
        "and the LATENT of the sampler that uses it."
    )


def warnings(run: RunRecord) -> list[str]:
    """What the user should know first."""
    nothing = [Text("nothing ran sparse: {cause}", cause=cause(run))] if run.completed and not run.sparse_calls else []
    return [*nothing, *run.warnings]


def warned(text: str) -> Text:
    """A warning as a line."""
    return Text("WARNING: {text}", text=text)


def _sentences(*texts: str) -> Joined:
    return Joined(" ", filter(None, texts))


def _raylight() -> str:
    """What to say where ComfyUI has raylight, whose samplers take no MODEL."""
    if "raylight" not in sys.modules:
        return ""
    return Text(
        "The samplers of raylight use no MODEL and never ask its attention override: for them there are SVG-EAR for raylight and "
        "SVG-EAR Report for raylight."
    )


def _taken_over(found: Found) -> str:
    if not found.taken_over_by:
        return ""
    return Text(
        "A later node took over: connect this node to the MODEL of the {node} behind this one, of two only the last counts.",
        node=found.taken_over_by,
    )


def _what_ran(run: RunRecord) -> list[str]:
    facts = {"model": run.architecture or Text("unknown"), "steps": counted(run.steps, "step"), "time": duration(run.seconds)}
    lines = [Text("Model: {model}, {steps}, {time} in the sampler", **facts)]
    if run.times.saved is not None:
        lines.append(Text("The whole run: {saved}", saved=_saved(run)))
    if run.tokens is not None:
        lines.append(_tokens(run))
    if run.settings:
        lines.append(Text("Settings: {settings}", settings=run.settings))
    if run.advice is not None:
        lines.append(Text("Advice: {text}", text=run.advice))
    return lines


def _tokens(run: RunRecord) -> str:
    figures = {"tokens": f"{run.tokens:,}", "least": f"{run.min_tokens:,}"}
    if run.min_tokens_origin:
        figures["least"] = Text("{least} ({origin})", least=figures["least"], origin=run.min_tokens_origin)
    if run.size:
        figures["tokens"] = Text("{tokens} ({size})", tokens=figures["tokens"], size=run.size.in_words())
    if run.tokens >= run.min_tokens:
        return Text("Tokens: {tokens}, at or above the min_tokens of {least}", **figures)
    text = Text("Tokens: {tokens}, below the min_tokens of {least}", **figures)
    if run.size is None:
        return text
    # Text tokens in the sequence count too.
    larger, longer = run.size.reaching(run.min_tokens - max(run.tokens - run.size.tokens, 0))
    return Text("{text}; long enough would be {larger}, or {longer}", text=text, larger=larger.in_words(), longer=longer.in_words())


def _calls(run: RunRecord) -> list[str]:
    lines = [Text("Sparse calls: {count}", count=run.sparse_calls)]
    if run.density is not None:
        figures = {"density": f"{run.density:.1%}", "error": f"{run.estimated_error:.1%}"}
        lines.append(Text("  mean density {density}, estimated error {error}", **figures))
    if run.narrowed:
        lines.append(Text("  computed in {dtype}: the model hands over float32, whose products are slow on GPUs", dtype=run.narrowed))
    if run.int8_calls:
        lines.append(Text("  queries and keys in int8 in {count}", count=counted(run.int8_calls, "attention call")))
    lines.append(Text("Dense calls: {count}", count=sum(run.dense_calls.values())))
    blamed = None if run.sparse_calls or not run.completed else _cause_of(run)
    for reason, count in run.dense_calls.items():
        sentence = Text("see above") if reason == blamed else reason.sentence
        lines.append(Text("  {count} {reason}: {sentence}", count=count, reason=reason.name, sentence=sentence))
    if run.dense_attention:
        lines.append(Text("Dense calls of the video used: {attention}", attention=_dense_attention(run)))
    return lines


def _dense_attention(run: RunRecord) -> str:
    if len(run.dense_attention) == 1:
        return next(iter(run.dense_attention))
    return "; ".join(f"{name} ({count})" for name, count in run.dense_attention.items())


def _times(run: RunRecord) -> list[str]:
    times, lines = run.times, []
    if times.dense_steps is not None and run.dense_steps:
        took = Text("{part} of {whole}", part=duration(times.dense_steps), whole=duration(run.seconds))
        if run.seconds:
            took = Text("{took} ({share})", took=took, share=f"{times.dense_steps / run.seconds:.0%}")
        lines.append(Text("Dense steps: {steps} of {all}, {took}", steps=run.dense_steps, all=run.steps, took=took))
    if run.skipped_steps:
        lines.append(
            Text(
                "Skipped steps: {steps} of {all}, in which the model did not run: a cache or the sampler left them out",
                steps=run.skipped_steps,
                all=run.steps,
            )
        )
    if times.sparse is not None:
        lines.append(Text("Time in the sparse calls: {time}", time=duration(times.sparse)))
        if times.dense is not None:
            lines[-1] = Text("{text}, in dense attention it would have been about {dense}", text=lines[-1], dense=duration(times.dense))
        lines += [Text("  {stage} {time}", stage=name, time=duration(seconds)) for name, seconds in times.stages.items()]
    if times.speed_up is not None:
        lines.append(Text("A sparse call was {speed} than a dense one of this run", speed=_speed(run)))
    if times.once >= 0.1:
        lines.append(Text("First calls, in which kernels compile: {time} on top, once", time=duration(times.once)))
    return lines


def _saved(run: RunRecord) -> str:
    saved = run.times.saved
    dense, time = run.seconds + saved, duration(abs(saved))
    change = Text("about {time} saved", time=time) if saved >= 0 else Text("about {time} lost", time=time)
    if dense <= 0:
        return change
    return Text("{change} ({share} of about {dense} all dense)", change=change, share=f"{abs(saved) / dense:.0%}", dense=duration(dense))


def _speed(run: RunRecord) -> str:
    speed_up = run.times.speed_up
    faster = Text("{times}x faster", times=f"{speed_up:.1f}") if speed_up >= 1 else Text("{times}x slower", times=f"{1 / speed_up:.1f}")
    return Text("{speed} (on a CPU, which is for trying out)", speed=faster) if run.on_cpu else faster


def _video_calls(run: RunRecord) -> int:
    return run.sparse_calls + sum(count for reason, count in run.dense_calls.items() if reason not in UNRELATED)


def _cause_of(run: RunRecord) -> Reason | None:
    """The likeliest reason why nothing ran sparse."""
    related = {reason: count for reason, count in run.dense_calls.items() if reason not in UNRELATED}
    return max(related, key=lambda reason: (not reason.by_design, related[reason]), default=None)


def _cause_name(run: RunRecord) -> str:
    reason = _cause_of(run)
    if reason is None:
        return Text("No video attention") if run.dense_calls else Text("Attention never called")
    if reason == SHORT_SEQUENCE and run.tokens is not None:
        return Text("Too short, {tokens} of {least} tokens", tokens=f"{run.tokens:,}", least=f"{run.min_tokens:,}")
    return reason.name


def cause(run: RunRecord) -> str:
    """The likeliest reason why nothing ran sparse, with what to change."""
    if not run.dense_calls:
        return NEVER_CALLED
    reason = _cause_of(run)
    if reason is None:
        return Text("all attention calls were of other kinds than the video's own attention.")
    return in_words(reason)


def in_words(reason: Reason) -> Text:
    """A reason with what to change."""
    return Text("{reason}: {sentences}", reason=reason.name, sentences=_sentences(reason.sentence, reason.remedy))
