"""What the user reads: text that can be said in another language, and numbers with the right word behind them."""

from __future__ import annotations

from collections.abc import Iterable


class Text(str):
    """English text that remembers how it was made, so that the browser can say it in the language of the interface.

    Attributes:
        template: what is translated, with the names of the figures in braces.
        figures: what stands in the braces, by name; texts among them are translated too.
    """

    template: str
    figures: dict[str, object]

    def __new__(cls, template: str, **figures):
        made = super().__new__(cls, template.format(**figures) if figures else template)
        made.template, made.figures = template, figures
        return made

    # ComfyUI copies what it hands out of its history.
    def __getnewargs_ex__(self):
        return (self.template,), self.figures


class Joined(str):
    """Texts with the same few characters between them.

    Attributes:
        between: what stands between them.
        parts: the texts.
    """

    between: str
    parts: tuple[str, ...]

    def __new__(cls, between: str, parts: Iterable[str]):
        kept = tuple(parts)
        made = super().__new__(cls, between.join(kept))
        made.between, made.parts = between, kept
        return made

    def __getnewargs__(self):
        return self.between, self.parts


def for_browser(text: object):
    """A text as JSON for ``spoken`` in web/language.js; anything else as the text that it is."""
    if isinstance(text, Text) and text.figures:
        return {"template": text.template, "figures": {name: for_browser(figure) for name, figure in text.figures.items()}}
    if isinstance(text, Joined):
        return {"between": text.between, "parts": [for_browser(part) for part in text.parts]}
    return str(text)


def on_node(text: str, status: str) -> dict:
    """What web/report.js shows on a node: a text under one line, also in English for who reads the history."""
    return {"text": [text], "status": [status], "svg_ear_said": [{"text": for_browser(text), "status": for_browser(status)}]}


def counted(count: int, thing: str, things: str | None = None) -> Text:
    """``1 step``, ``20 steps``, ``32,760 tokens``; ``things`` where the plural is not just an s."""
    return Text(f"{{count}} {thing if count == 1 else things or thing + 's'}", count=f"{count:,}")


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"
