"""Printed letters and symbols of the fonts that matplotlib ships, in several faces; never a digit.

A code point that is a digit in any script or typeface is left out by its Unicode properties, and so is a glyph
whose picture looks like one of 0-9 (Cyrillic Ze, ...), because digits are a transfer test. Latin and Greek letters
and their look-alikes are left out as well: they are alphabets of the Omniglot transfer test.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tangentcl.errors import import_extra
from tangentcl.pretraining.strokes import CANVAS

FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol",
)  # fmt: skip
HELD_OUT = (
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    "\u0391\u0392\u0393\u0394\u0395\u0396\u0397\u0398\u0399\u039a\u039b\u039c\u039d\u039e\u039f\u03a0\u03a1\u03a3\u03a4\u03a5\u03a6\u03a7"
    "\u03a8\u03a9\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03b8\u03b9\u03ba\u03bb\u03bc\u03bd\u03be\u03bf\u03c0\u03c1\u03c2\u03c3\u03c4\u03c5\u03c6"
    "\u03c7\u03c8\u03c9"
)
RANGES = (
    (0xA1, 0x2B0), (0x400, 0x530), (0x531, 0x590), (0x620, 0x6D4), (0x7C0, 0x7FB), (0xE81, 0xEE0), (0x10A0, 0x1100),
    (0x1400, 0x1680), (0x1680, 0x169B), (0x2100, 0x2150), (0x2190, 0x2400), (0x2580, 0x2800), (0x2C60, 0x2C80),
    (0x2D00, 0x2D30), (0x2D30, 0x2D80), (0x4DC0, 0x4E00), (0xA4D0, 0xA500), (0xA640, 0xA6A0), (0xA720, 0xA800),
)  # fmt: skip
SKETCH = 20  # pixels along one side of the pictures that are compared with each other


@lru_cache(maxsize=512)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    matplotlib = import_extra("matplotlib", extra="pretrain", purpose="drawing the glyph classes")
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"), size)


@lru_cache(maxsize=32)
def _covered(face: str) -> frozenset[int]:
    ft2font = import_extra("matplotlib.ft2font", extra="pretrain", purpose="listing the glyph classes")
    return frozenset(ft2font.FT2Font(_font(face, 10).path).get_charmap())


def is_digit_like(character: str) -> bool:
    """Whether Unicode knows the character as a digit or number, as a variant of one, or as a sign that shows one.

    >>> [is_digit_like(c) for c in "7\\u00b2\\u2462\\uff13\\U0001d7d8\\u0663\\u01bbA"]
    [True, True, True, True, True, True, True, False]
    """
    name = unicodedata.name(character, "")
    if any(word in name for word in ("DIGIT", "NUMBER", "LETTER TWO", "TONE ", "RECYCLING SYMBOL FOR TYPE")):
        return True
    forms = character + unicodedata.normalize("NFKD", character)
    return any(unicodedata.numeric(c, None) is not None or unicodedata.category(c)[0] == "N" for c in forms)


def _ink(character: str, face: str, size: int, weight: int) -> Image.Image | None:
    """The glyph cut out at its bounding box, or None if it has no ink."""
    font = _font(face, size)
    image = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(image).text((size, size), character, fill=255, font=font, stroke_width=weight)
    box = image.getbbox()
    return image.crop(box) if box else None


def _fit(ink: Image.Image, side: int, width: float, height: float) -> Image.Image:
    new = (max(2, round(width)), max(2, round(height)))
    canvas = Image.new("L", (side, side))
    resized = ink.resize(new, Image.Resampling.BILINEAR, reducing_gap=2.0)
    canvas.paste(resized, ((side - new[0]) // 2, (side - new[1]) // 2))
    return canvas


def sketch(character: str, face: str = "DejaVuSans") -> np.ndarray:
    """The glyph scaled to a fixed box, blurred, as a centred unit vector [SKETCH * SKETCH]."""
    ink = _ink(character, face, 48, 0)
    if ink is None:
        return np.zeros(SKETCH * SKETCH)
    scale = (SKETCH - 2) / max(ink.size)
    small = _fit(ink, SKETCH, max(ink.width * scale, SKETCH / 4), max(ink.height * scale, SKETCH / 4))
    v = np.asarray(small.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float64).ravel()
    v = v - v.mean()
    return v / max(float(np.linalg.norm(v)), 1e-9)


def _candidates() -> list[str]:
    found = []
    for first, last in RANGES:
        for code in range(first, last):
            c = chr(code)
            # precomposed letters differ from their base by a few pixels only
            if unicodedata.category(c) not in ("Lu", "Ll", "Lo", "Sm", "So", "Sc") or unicodedata.decomposition(c):
                continue
            if code in _covered("DejaVuSans") and not is_digit_like(c):
                found.append(c)
    return found


@lru_cache(maxsize=4)
def glyph_classes(alike: float = 0.9, held_out_alike: float = 0.81) -> tuple[str, ...]:
    """The characters that are classes, in code point order.

    Args:
        alike: a glyph whose picture correlates above this with an earlier one is the same class and left out.
        held_out_alike: a glyph whose picture correlates above this with a digit, Latin or Greek letter in any face
            is left out.
    """
    held_out = np.stack([sketch(c, f) for c in HELD_OUT for f in FACES if ord(c) in _covered(f)])
    kept: list[str] = []
    pictures = np.zeros((0, SKETCH * SKETCH))
    for c in _candidates():
        v = sketch(c)
        if not v.any() or (held_out @ v).max() > held_out_alike or (len(kept) and (pictures @ v).max() > alike):
            continue
        kept.append(c)
        pictures = np.concatenate([pictures, v[None]])
    return tuple(kept)


def draw(character: str, rng: np.random.Generator) -> np.ndarray:
    """One print of the character in a random face, weight and aspect, ink uint8 [CANVAS, CANVAS]."""
    faces = [f for f in FACES if ord(character) in _covered(f)]
    size = int(rng.choice([36, 48]))
    ink = _ink(character, str(rng.choice(faces)), size, int(rng.choice([0, 0, 1, 2])))
    if ink is None:
        return np.zeros((CANVAS, CANVAS), dtype=np.uint8)
    scale = CANVAS * rng.uniform(0.55, 0.75) / max(ink.size)
    stretch = np.exp(rng.normal(0.0, 0.1))
    fitted = _fit(ink, CANVAS, ink.width * scale * stretch, ink.height * scale / stretch)
    return np.asarray(fitted)


def render(character: str, n: int, seed: tuple[int, ...]) -> np.ndarray:
    """``n`` prints of one character, uint8 [n, CANVAS, CANVAS]."""
    rng = np.random.default_rng(seed)
    return np.stack([draw(character, rng) for _ in range(n)])
