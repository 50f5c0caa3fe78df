"""Drawing for the figure: text, heat maps, colour bars, in units that do not depend on the width of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from PIL import Image, ImageDraw, ImageFont

from .palette import FAINT, INK, LINE, PAPER, shade

UNITS = 1400


class Canvas:
    """An image of ``UNITS`` units in width; all coordinates are in units."""

    def __init__(self, width: int, height: float):
        self.scale = width / UNITS
        self.image = Image.new("RGB", (width, self.pixels(height)), PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._fonts: dict[float, ImageFont.ImageFont] = {}

    def pixels(self, units: float) -> int:
        return round(units * self.scale)

    def text(self, x: float, y: float, text: str, size: float = 17, color=INK, anchor: str = "la", across: bool = False) -> None:
        """Write one line. ``anchor`` as in Pillow; ``across`` turns it to read upwards, centred on the point."""
        font = self._fonts.setdefault(size, ImageFont.load_default(size=max(size * self.scale, 6)))
        if not across:
            self._draw.text((self.pixels(x), self.pixels(y)), text, color, font, anchor=anchor)
            return
        left, top, right, bottom = font.getbbox(text)
        line = Image.new("RGB", (round(right) + 2, round(bottom) + 2), PAPER)
        ImageDraw.Draw(line).text((0, 0), text, color, font)
        line = line.rotate(90, expand=True)
        self.image.paste(line, (self.pixels(x) - line.width // 2, self.pixels(y) - line.height // 2))

    def text_width(self, text: str, size: float = 17) -> float:
        """Units that a line of text takes."""
        return ImageFont.load_default(size=max(size * self.scale, 6)).getlength(text) / self.scale

    def paint(self, x: float, y: float, width: float, height: float, colors: numpy.ndarray, smooth: bool = False) -> None:
        """Fill a rectangle with an array of colours ``[rows, columns, 3]``, and frame it."""
        size = (self.pixels(x + width) - self.pixels(x), self.pixels(y + height) - self.pixels(y))
        fewer = smooth and (colors.shape[1] > size[0] or colors.shape[0] > size[1])
        picture = Image.fromarray(colors).resize(size, Image.Resampling.BOX if fewer else Image.Resampling.NEAREST)
        self.image.paste(picture, (self.pixels(x), self.pixels(y)))
        self.frame(x, y, width, height)

    def frame(self, x: float, y: float, width: float, height: float, color=LINE) -> None:
        """Outline a rectangle."""
        corners = (self.pixels(x) - 1, self.pixels(y) - 1, self.pixels(x + width), self.pixels(y + height))
        self._draw.rectangle(corners, outline=color)

    def line(self, points: Sequence[tuple[float, float]], color=LINE, width: float = 2) -> None:
        """Join points by straight lines."""
        pixels = [(self.pixels(x), self.pixels(y)) for x, y in points]
        self._draw.line(pixels, color, max(self.pixels(width), 1), joint="curve")

    def dot(self, x: float, y: float, radius: float, color) -> None:
        """Fill a small circle."""
        corners = (self.pixels(x - radius), self.pixels(y - radius), self.pixels(x + radius), self.pixels(y + radius))
        self._draw.ellipse(corners, fill=color)

    def swatch(self, x: float, y: float, color, label: str, size: float = 15) -> float:
        """A square of colour with its meaning; returns where the next may begin."""
        self.paint(x, y, 16, 16, numpy.full((1, 1, 3), color, dtype="uint8"))
        self.text(x + 23, y + 8, label, size, anchor="lm")
        return x + 23 + self.text_width(label, size) + 26

    def bar(self, x: float, y: float, width: float, ramp, low: str, high: str, title: str) -> None:
        """A colour bar with its two ends."""
        self.text(x, y - 7, title, 15, FAINT, "ls")
        self.paint(x, y, width, 13, shade(numpy.linspace(0, 1, 256)[None], ramp))
        self.text(x, y + 19, low, 14, FAINT, "la")
        self.text(x + width, y + 19, high, 14, FAINT, "ra")
