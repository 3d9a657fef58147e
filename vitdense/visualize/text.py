"""Text on images: labels with a filled background, and the legend beside an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from vitdense.visualize.fonts import Face, Run, first_face, font, load, runs

TEXT_COLOR, HEADING_COLOR, BACKGROUND = (235, 235, 235), (150, 150, 150), (24, 24, 24)
MAX_NAME = 20  # characters of a class name in a legend


class LegendRow(NamedTuple):
    """One line of a legend."""

    name: str
    color: Sequence[int] | None  # None: no swatch, a heading
    share: float | None = None  # in [0, 1], right-aligned
    hatched: bool = False
    count: int | None = None  # of objects, right-aligned
    heading: bool = False  # title of the rows below; dropped first when rows do not fit


def text_width(text: str, size: int) -> float:
    """Return the width in pixels of a line of text of `size` pixels."""
    return sum(_run_width(run, size) for run in runs(text))


def write_text(
    canvas: Any, at: tuple[float, float], text: str, *, size: int, fill: Sequence[int], right: bool = False
) -> None:
    """Write a line of text on a Pillow image, its left end (or with `right` its right end) at `at` (x, y), the middle.

    Letters that the first font lacks are drawn with another one (`fonts.runs`).
    """
    from PIL import ImageDraw

    pen, parts = ImageDraw.Draw(canvas), runs(text)
    if len(parts) == 1 and parts[0].face.strike is None and parts[0].face == first_face():
        letters = load(parts[0].face, size)
        pen.text(at, parts[0].text, fill=fill, font=letters, anchor='rm' if right else 'lm')
        return
    left = at[0] - (text_width(text, size) if right else 0)
    ascent, descent = font(size).getmetrics()
    baseline = at[1] + (ascent - descent) / 2
    for run in parts:
        if run.face.strike is None:
            pen.text((left, baseline), run.text, fill=fill, font=load(run.face, size), anchor='ls')
        else:
            tile, above = _colored(run, size)
            canvas.paste(tile, (round(left), round(baseline - above)), tile)
        left += _run_width(run, size)


def _run_width(run: Run, size: int) -> float:
    width = load(run.face, size).getlength(run.text)
    return width if run.face.strike is None else width * _shrink(run.face, size)


def _shrink(face: Face, size: int) -> float:
    """Return the factor that brings bitmaps of a font to letters of `size` pixels."""
    return 1.2 * size / sum(load(face, size).getmetrics())


@lru_cache(maxsize=256)
def _colored(run: Run, size: int) -> tuple[Any, float]:
    """Return letters of a font of colour bitmaps (RGBA), and how far above the baseline they begin."""
    from PIL import Image, ImageDraw

    letters, factor = load(run.face, size), _shrink(run.face, size)
    ascent, descent = letters.getmetrics()
    tile = Image.new('RGBA', (max(1, round(letters.getlength(run.text))), ascent + descent))
    ImageDraw.Draw(tile).text((0, ascent), run.text, font=letters, anchor='ls', embedded_color=True)
    return tile.resize([max(1, round(side * factor)) for side in tile.size], Image.Resampling.LANCZOS), ascent * factor


def font_size(height: int, width: int) -> int:
    """Return a font size in pixels that reads well on an image of that size."""
    return max(12, round((height * width) ** 0.5 / 38))


def line_width(height: int, width: int) -> int:
    """Return the width in pixels of a line that is seen on an image of that size."""
    return max(1, round((height * width) ** 0.5 / 300))


def shorten(name: str, length: int = MAX_NAME) -> str:
    """Return `name`, cut to `length` characters."""
    return name if len(name) <= length else name[: length - 1].rstrip() + '…'


def percent(share: float) -> str:
    """Return a share in [0, 1] as words: '43 %', '2.1 %', '< 0.1 %'."""
    if share < 0.001:
        return '< 0.1 %'
    return f'{share * 100:.0f} %' if share >= 0.0995 else f'{share * 100:.1f} %'


def readable_on(color: Sequence[int]) -> tuple[int, int, int]:
    """Return black or white, whichever is read more easily on `color` (relative luminance of sRGB)."""
    red, green, blue = (int(value) for value in color)
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def label_size(text: str, size: int) -> tuple[int, int]:
    """Return the (width, height) in pixels of the background of `text` of `size` pixels."""
    pad = max(2, size // 5)
    return round(text_width(text, size)) + 2 * pad, size + 2 * pad


def draw_label(canvas: Any, corner: tuple[float, float], text: str, *, color: Sequence[int], size: int) -> None:
    """Write `text` on a filled rectangle with lower left corner `corner` (x, y), moved inside the Pillow image."""
    from PIL import ImageDraw

    width, height = label_size(text, size)
    x = max(0, min(corner[0], canvas.width - width))
    y = max(0, min(corner[1] - height, canvas.height - height))
    color = tuple(int(value) for value in color)
    ImageDraw.Draw(canvas).rectangle((x, y, x + width, y + height), fill=color)
    middle = (x + max(2, size // 5), y + height / 2)
    write_text(canvas, middle, text, size=size, fill=readable_on(color))


@lru_cache(maxsize=64)
def legend_width(names: tuple[str, ...], size: int) -> int:
    """Return the width in pixels of a legend for all of `names`, constant over the frames of a video."""
    longest = max((text_width(shorten(name), size) for name in names), default=0.0)
    values = text_width('< 0.1 %', size)
    return int(longest + values + 4.0 * size) // 2 * 2


def add_legend(img: np.ndarray, rows: Sequence[LegendRow], names: tuple[str, ...], size: int) -> np.ndarray:
    """Return (H', W', 3): the image with `rows` on a dark panel at its right.

    The panel is as wide as the longest of `names` needs, and as high as the image (of a flat image: high enough
    for four rows). Rows that do not fit are counted in the last line.
    """
    step = round(size * 1.5)
    width = legend_width(names, size)
    panel = np.full((max(img.shape[0], step * 5), width, 3), BACKGROUND, np.uint8)
    num_lines = (len(panel) - step // 2) // step
    if len(rows) > num_lines:
        rows = [row for row in rows if not row.heading]
    if len(rows) > num_lines:
        rows = [*_largest(rows, num_lines - 1), LegendRow(f'+ {len(rows) - num_lines + 1} more', None)]
    for line, row in enumerate(rows):
        top = step // 3 + line * step
        color = None if row.color is None else tuple(int(value) for value in row.color)
        panel[top : top + step] = _name_strip(row.name, color, row.hatched, row.heading, size, width)
        if row.share is not None or row.count is not None:
            value = _value_strip(str(row.count) if row.share is None else percent(row.share), size)
            right = width - round(size * 0.7)
            panel[top : top + step, right - value.shape[1] : right] = value
    below = len(panel) - len(img)
    img = np.pad(img, ((0, below), (0, 0), (0, 0)), constant_values=BACKGROUND[0]) if below else img
    return np.concatenate([img, panel], axis=1)


def _largest(rows: Sequence[LegendRow], count: int) -> list[LegendRow]:
    """Return the `count` rows of the largest shares and counts in their old order; headings stay."""

    def weight(line: int) -> float:
        row = rows[line]
        if row.color is None:
            return float('inf')
        return row.count if row.share is None else row.share

    keep = sorted(range(len(rows)), key=lambda line: -weight(line))[:count]
    return [rows[line] for line in sorted(keep)]


# Drawing text is the slowest step of a video frame and changes little between frames: strips are cached.


@lru_cache(maxsize=1024)
def _name_strip(
    name: str, color: tuple[int, ...] | None, hatched: bool, heading: bool, size: int, width: int
) -> np.ndarray:
    """Return the line of a legend without its value: a swatch and a name."""
    from PIL import Image, ImageDraw

    strip = Image.new('RGB', (width, round(size * 1.5)), BACKGROUND)
    pen = ImageDraw.Draw(strip)
    middle, left = size * 0.6, size * 0.7
    if color is not None:
        box = (left, middle - size * 0.45, left + size * 1.2, middle + size * 0.45)
        pen.rectangle(box, fill=color)
        for step in range(3 * hatched):
            x = left + size * 0.4 * step
            pen.line((x, box[3], x + size * 0.4, box[1]), fill=TEXT_COLOR, width=max(1, size // 12))
        left += size * 1.8
    write_text(strip, (left, middle), shorten(name), size=size, fill=HEADING_COLOR if heading else TEXT_COLOR)
    return np.asarray(strip)


@lru_cache(maxsize=1024)
def _value_strip(text: str, size: int) -> np.ndarray:
    """Return the number at the end of a line."""
    from PIL import Image

    strip = Image.new('RGB', (round(text_width(text, size)) + 1, round(size * 1.5)), BACKGROUND)
    write_text(strip, (strip.width, size * 0.6), text, size=size, fill=TEXT_COLOR, right=True)
    return np.asarray(strip)
