"""Invented handwritten characters: a class is a program of pen strokes, an instance is one shaky drawing of it.

After the generative view of handwriting in Lake et al. (2015), Human-level concept learning through
probabilistic program induction; the programs here are random and know no alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 40  # pixels; larger than the network's 32, so that shifts and rotations cut nothing off
OVERSAMPLING = 2
CURVE_POINTS = 14
KINDS = ("line", "curve", "wave", "corner", "arc")


@dataclass(frozen=True)
class Character:
    """A program of strokes: for each, its kind and control points [m, 2] in the unit square."""

    kinds: tuple[str, ...]
    points: tuple[np.ndarray, ...]


def _stroke(kind: str, start: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    count = {"line": 2, "curve": 3, "wave": 4, "corner": 3, "arc": 3}[kind]
    points = rng.integers(0, 5, (count, 2)) / 4.0 * 0.84 + 0.08
    if kind == "arc":  # centre, radii, start and sweep in turns
        sweep = rng.choice([0.5, 0.75, 1.0]) * rng.choice([-1.0, 1.0])
        points = np.array([rng.uniform(0.3, 0.7, 2), rng.uniform(0.12, 0.36, 2), [rng.integers(0, 8) / 8.0, sweep]])
    elif start is not None:
        points[0] = start
    if kind != "arc" and np.linalg.norm(points[0] - points[-1]) < 0.3:
        points[-1] = 0.08 + 0.84 * ((points[0] - 0.08) / 0.84 + rng.choice([0.25, 0.5], 2)) % 0.84
    return points


def characters(n_classes: int, seed: int) -> list[Character]:
    """Random characters; every third is new and the next two differ from it in one stroke, to be told apart.

    Args:
        n_classes: number of characters.
        seed: the same seed gives the same characters.

    >>> len(characters(5, seed=0))
    5
    """
    rng = np.random.default_rng([seed, 1])
    made: list[Character] = []
    while len(made) < n_classes:
        kinds: list[str] = []
        points: list[np.ndarray] = []
        for _ in range(int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.3, 0.3, 0.2, 0.1]))):
            kinds.append(str(rng.choice(KINDS, p=[0.3, 0.25, 0.15, 0.15, 0.15])))
            joined = [p for k, s in zip(kinds, points) if k != "arc" for p in s]
            start = joined[rng.integers(len(joined))] if joined and rng.random() < 0.55 else None
            points.append(_stroke(kinds[-1], start, rng))
        made.append(Character(tuple(kinds), tuple(points)))
        for _ in range(2):
            k, changed, new_kinds = int(rng.integers(len(kinds))), list(points), list(kinds)
            new_kinds[k] = str(rng.choice(KINDS))
            changed[k] = _stroke(new_kinds[k], points[k][0] if kinds[k] != "arc" else None, rng)
            made.append(Character(tuple(new_kinds), tuple(changed)))
    return made[:n_classes]


def trace(kind: str, points: np.ndarray) -> np.ndarray:
    """The pen's path [CURVE_POINTS, 2] of one stroke: a Bezier curve, a polyline or an arc of an ellipse."""
    t = np.linspace(0.0, 1.0, CURVE_POINTS)[:, None]
    if kind == "arc":
        angle = 2 * np.pi * (points[2, 0] + t * points[2, 1])
        return points[0] + points[1] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    if kind == "corner":
        return np.concatenate([points[0] + 2 * t[::2] * (points[1] - points[0]), points[1:]])
    if len(points) == 2:
        return (1 - t) * points[0] + t * points[1]
    if len(points) == 3:
        return (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    return sum(c * p for c, p in zip(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3), points))


def draw(character: Character, rng: np.random.Generator) -> np.ndarray:
    """One drawing as ink, uint8 [CANVAS, CANVAS], 255 where the pen was."""
    side = CANVAS * OVERSAMPLING
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    width = rng.uniform(1.6, 7.5)
    shake = rng.uniform(0.01, 0.055)
    size = rng.uniform(0.6, 0.8, 2) * side
    for kind, points in zip(character.kinds, character.points):
        noise = rng.normal(0.0, shake, points.shape)
        if kind == "arc":
            noise[2] *= 0.8
        path = trace(kind, points + noise)
        tremor = np.cumsum(rng.normal(0.0, 0.004, path.shape), axis=0)
        place = (path + tremor - 0.5) * size + side / 2 + rng.normal(0.0, 0.012 * side, 2)
        drawn = max(1.0, width * rng.uniform(0.8, 1.25))
        pen.line([tuple(p) for p in place], fill=255, width=max(1, round(drawn)), joint="curve")
        if drawn > 2.5:
            for x, y in (place[0], place[-1]):
                r = drawn / 2 - 0.5
                pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BOX))


def render(character: Character, n: int, seed: tuple[int, ...]) -> np.ndarray:
    """``n`` drawings of one character, uint8 [n, CANVAS, CANVAS]."""
    rng = np.random.default_rng(seed)
    return np.stack([draw(character, rng) for _ in range(n)])
