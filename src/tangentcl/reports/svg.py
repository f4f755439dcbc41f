"""Drawing inline SVG by hand: a canvas, scales, ticks and colours.

Text and axes use ``currentColor`` and marks ``var(--sN, fallback)``, so a figure follows the light or dark colours of
the page around it and still stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# Distinct under the common colour-vision deficiencies (after Okabe & Ito, 2008), at least 3:1 against the page.
LIGHT = ("#0072b2", "#d55e00", "#00805e", "#aa4a8a", "#8a6a00", "#4d4d4d", "#3a86c8", "#882255")
DARK = ("#56b4e9", "#ff8f4f", "#2fc59b", "#e79ac6", "#e6c84b", "#c8c8c8", "#9db8ff", "#f0708f")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond")
# Eleven equidistant samples of viridis (van der Walt & Smith, 2015): perceptually uniform, readable in grey.
VIRIDIS = (
    (68, 1, 84),
    (72, 36, 117),
    (65, 68, 135),
    (53, 95, 141),
    (42, 120, 142),
    (33, 145, 140),
    (34, 168, 132),
    (68, 191, 112),
    (122, 209, 81),
    (189, 223, 38),
    (253, 231, 37),
)


def colour(slot: int) -> str:
    """CSS colour of the series in this slot; slots beyond the palette repeat it with another dash and marker."""
    index = slot % len(LIGHT)
    return f"var(--s{index},{LIGHT[index]})"


def sequential(value: float) -> tuple[str, str]:
    """Fill and text colour for a value in [0, 1].

    >>> sequential(0.0), sequential(1.0)
    (('#440154', '#fff'), ('#fde725', '#000'))
    """
    place = min(max(value, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    rgb = [round(a + (b - a) * (place - low)) for a, b in zip(VIRIDIS[low], VIRIDIS[low + 1])]
    fill = "#" + "".join(f"{c:02x}" for c in rgb)
    return fill, "#000" if contrast(fill, "#000000") >= contrast(fill, "#ffffff") else "#fff"


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two ``#rrggbb`` colours (WCAG 2.1), 1 to 21.

    >>> contrast("#ffffff", "#000000")
    21.0
    """
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``count`` of them.

    >>> ticks(0.13, 0.92)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * count >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def text_width(text: str, size: float = 12) -> float:
    """Estimated width in pixels of text in the page's font; wide scripts count double."""
    return sum(1.0 if ord(c) > 0x2E80 else 0.55 for c in text) * size


def shorten(text: str, width: float, size: float = 12) -> str:
    """The text, cut with an ellipsis to fit a width in pixels.

    >>> shorten("sequential LoRA", 60)
    'sequenti…'
    """
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float, size: float = 12, lines: int = 2) -> list[str]:
    """The text in at most so many lines of a width in pixels, the last one cut if needed.

    >>> wrap("sequential LoRA, all logits", 120)
    ['sequential LoRA,', 'all logits']
    """
    words = text.split()
    done: list[str] = []
    while words and len(done) < lines - 1:
        taken = 1
        while taken < len(words) and text_width(" ".join(words[: taken + 1]), size) <= width:
            taken += 1
        done.append(shorten(" ".join(words[:taken]), width, size))
        words = words[taken:]
    return [*done, shorten(" ".join(words), width, size)] if words else done


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least ``gap`` apart and inside [low, high] if they fit, in the same order.

    >>> spread([10, 11, 50], 12, 0, 100)
    [10, 22, 50]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], low, placed[-1] + gap if placed else low))
    for j in range(len(placed) - 1, -1, -1):
        limit = high if j == len(placed) - 1 else placed[j + 1] - gap
        placed[j] = min(placed[j], limit)
    result = [0.0] * len(wanted)
    for i, y in zip(order, placed):
        result[i] = y
    return result


@dataclass
class Canvas:
    """Collects the parts of one figure; coordinates in pixels from the top left."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, opacity: float = 1.0, dash: str = "") -> None:
        """A thin line in the text's colour."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
            f'stroke-opacity="{opacity:g}"{dashed}/>'
        )

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, *, opacity: float = 1.0, hint: str | None = None
    ) -> None:
        """A filled rectangle; ``hint`` is shown when pointing at it."""
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" '
            f'style="fill:{fill}" fill-opacity="{opacity:g}">{title}</rect>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 12,
        anchor: str = "start",
        fill: str = "currentColor",
        bold: bool = False,
        turned: bool = False,
        hint: str | None = None,
    ) -> None:
        """One line of text, its baseline at y; ``turned`` reads upwards."""
        weight = ' font-weight="600"' if bold else ""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        title = f"<title>{escape(hint)}</title>" if hint and hint != content else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}{turn}>'
            f"{escape(content)}{title}</text>"
        )

    def curve(self, points: Sequence[tuple[float, float]], slot: int, *, width: float = 2.2) -> None:
        """A line through the points; a point with NaN interrupts it."""
        path, pen = [], "M"
        for x, y in points:
            if math.isnan(y):
                pen = "M"
                continue
            path.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        dash = DASHES[(slot // len(LIGHT)) % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="{" ".join(path)}" fill="none" style="stroke:{colour(slot)}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{dashed}/>'
        )

    def band(self, low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], slot: int) -> None:
        """A faint area between two lines, over the points where both are known."""
        known = [(a, b) for a, b in zip(low, high) if not math.isnan(a[1]) and not math.isnan(b[1])]
        outline = [a for a, _ in known] + [b for _, b in reversed(known)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        self.parts.append(f'<polygon points="{points}" style="fill:{colour(slot)}" fill-opacity="0.18"/>')

    def marker(self, x: float, y: float, slot: int, *, size: float = 3.6, hint: str | None = None) -> None:
        """A small mark whose shape, like its colour, belongs to the slot."""
        shape = MARKERS[(slot + slot // len(LIGHT)) % len(MARKERS)]
        title = f"<title>{escape(hint)}</title>" if hint else ""
        style = f'style="fill:{colour(slot)}"'
        if shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {style}>{title}</circle>')
            return
        corners = {
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
            "diamond": [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
        }[shape]
        points = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in corners)
        self.parts.append(f'<polygon points="{points}" {style}>{title}</polygon>')

    def finish(self, name: str, title: str, description: str, *, scale: bool = True) -> str:
        """The figure as an ``<svg>`` element.

        Args:
            name: unique on the page; makes the ids that tie title and description to the figure.
            scale: let it shrink and grow with the page; else it keeps its size and the page scrolls it.
        """
        size = "width:100%;min-width:600px;max-width:900px" if scale else f"width:{self.width:g}px"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'style="{size};height:auto" role="img" aria-labelledby="{name}-title {name}-desc" '
            f'font-family="system-ui, sans-serif">'
            f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )


def legend_mark(slot: int) -> str:
    """The mark of a slot alone, for a legend in the text around a figure."""
    canvas = Canvas(12, 12)
    canvas.marker(6, 6, slot, size=4)
    return f'<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">{"".join(canvas.parts)}</svg>'
