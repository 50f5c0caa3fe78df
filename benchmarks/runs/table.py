"""Rows of the bench as a table in Markdown. Imports neither torch nor ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence

from .models import MODELS
from .rows import CLIP_STEPS, Row

COLUMNS = {
    "dense step": "dense_step_s",
    "sparse step": "sparse_step_s",
    "first sparse step, more": "first_sparse_extra_s",
    "second": "second_sparse_extra_s",
    f"{CLIP_STEPS} steps": "clip_s",
    "of them dense": "clip_dense_s",
    "peak GiB": "peak_gib",
    "exact share": "exact_share",
    "precision": "precision",
    "commit": "commit",
}


def title(row: Row) -> str:
    """The clip of a row in words."""
    guidance = float(row["cfg"])
    return f"{MODELS[row['model']].title} {row['size']}" + (f", CFG {guidance:g}" if guidance != 1 else "")


def markdown(rows: Sequence[Row]) -> str:
    """One line for each clip and method, in seconds; what the rows were measured on below."""
    lines = ["| clip, tokens | method | " + " | ".join(COLUMNS) + " | speed-up |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        if row.get("error"):
            cells = [f"failed: {row['error']}", *[""] * len(COLUMNS)]
        else:
            cells = [str(row.get(column) or "") for column in COLUMNS.values()] + [_speed_up(row, rows)]
        lines.append(f"| {title(row)}, {int(row['tokens']):,} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_origins(rows)]) + "\n"


def _speed_up(row: Row, rows: Sequence[Row]) -> str:
    """Of the whole clip over ComfyUI's dense attention."""
    dense = next((other for other in rows if title(other) == title(row) and other["method"] == "dense" and other.get("clip_s")), None)
    return f"{float(dense['clip_s']) / float(row['clip_s']):.2f}" if dense and row.get("clip_s") else ""


def _origins(rows: Sequence[Row]) -> list[str]:
    """A line for each machine, set of versions, and way in which clips are known."""
    found = [
        f"{row['hardware']}, torch {row['torch']}, triton {row['triton'] or 'none'}, ComfyUI {row['comfyui']}, "
        f"comfy-kitchen {row['comfy_kitchen'] or 'none'}, commit {row['commit'] or 'unknown'}, {row['date']}; "
        f"{row.get('clip') or 'no whole clip'}."
        for row in rows
    ]
    return ["Seconds. Random weights, sampler euler, scheduler simple.", "", *(f"- {line}" for line in dict.fromkeys(found))]
