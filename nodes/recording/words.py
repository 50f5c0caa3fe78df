"""Numbers with the right word behind them."""

from __future__ import annotations


def counted(count: int, thing: str, things: str | None = None) -> str:
    """``1 step``, ``20 steps``, ``32,760 tokens``; ``things`` where the plural is not just an s."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"
