"""Coloured pictures drawn by formulas: fractals, contours, patterns, noise, dead leaves and things made of parts.

Sources: fractals of random iterated function systems (Kataoka et al. 2020, Pre-training without Natural Images);
radial contours (Kataoka et al. 2022, Replacing Labeled Real-image Datasets with Auto-generated Contours); random
programs of smooth functions (Baradad et al. 2022, Procedural Image Programs; compositional pattern-producing
networks, Stanley 2007); spectra and dead leaves (Baradad et al. 2021, Learning to See by Looking at Noise). A class
fixes the formula, a drawing varies its parameters, colours and viewpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from tangentcl.pretraining.strokes import CANVAS

Grid = tuple[np.ndarray, np.ndarray]


def _grid(rng: np.random.Generator, n: int, turn: float, zoom: float, shift: float) -> Grid:
    """Coordinates x, y [n, CANVAS, CANVAS] in about [-1, 1], each drawing under its own similarity."""
    axis = np.linspace(-1, 1, CANVAS)
    x, y = axis[None, None, :], axis[None, :, None]
    angle, scale = rng.normal(0, turn, (n, 1, 1)), np.exp(rng.normal(0, zoom, (n, 1, 1)))
    dx, dy = rng.normal(0, shift, (2, n, 1, 1))
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return c * x - s * y + dx, s * x + c * y + dy


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255.0, 0, 255).astype(np.uint8)


def _ramp(value: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Values [n, h, w] in [0, 1] through a colour ramp [n, k, 3] -> [n, h, w, 3]."""
    position = np.clip(value, 0, 1) * (colours.shape[1] - 1)
    low = np.minimum(position.astype(int), colours.shape[1] - 2)
    part = (position - low)[..., None]
    rows = np.arange(len(value))[:, None, None]
    return (1 - part) * colours[rows, low] + part * colours[rows, low + 1]


def fractal(program: np.random.Generator, rng: np.random.Generator, n: int) -> np.ndarray:
    """Attractor of a random iterated function system, density through a random colour ramp."""
    k = int(program.integers(2, 6))
    maps = program.uniform(-1, 1, (k, 2, 3))
    for m in maps:  # singular values as in Anderson and Farrell 2022: contractions that are not thin
        u, _, v = np.linalg.svd(m[:, :2])
        m[:, :2] = u @ np.diag(np.sort(program.uniform(0.25, 0.85, 2))) @ v
    jittered = maps + rng.normal(0, 0.035, (n, *maps.shape))
    weight = np.abs(np.linalg.det(maps[:, :, :2])) + 0.05
    points, density = np.zeros((n, 48, 2)), np.zeros((n, CANVAS * CANVAS))
    rows = np.arange(n)[:, None]
    seen = []
    for step in range(70):
        chosen = rng.choice(k, (n, 48), p=weight / weight.sum())
        m = jittered[rows, chosen]
        points = np.einsum("npij,npj->npi", m[..., :2], points) + m[..., 2]
        if step > 8:
            seen.append(points)
    cloud = np.concatenate(seen, axis=1)
    low, high = np.quantile(cloud, 0.01, axis=1, keepdims=True), np.quantile(cloud, 0.99, axis=1, keepdims=True)
    cell = ((cloud - low) / np.maximum(high - low, 1e-6) * (CANVAS - 7) + 3).astype(int)
    inside = ((cell >= 0) & (cell < CANVAS)).all(-1)
    flat = np.where(inside, cell[..., 1] * CANVAS + cell[..., 0], 0)
    np.add.at(density, (np.broadcast_to(rows, flat.shape), flat), inside.astype(float))
    value = np.log1p(density).reshape(n, CANVAS, CANVAS)
    value = value / np.maximum(value.max(axis=(1, 2), keepdims=True), 1e-6)
    return _to_bytes(_ramp(value, rng.uniform(0, 1, (n, 4, 3))))


def contour(program: np.random.Generator, rng: np.random.Generator, n: int) -> np.ndarray:
    """Nested radial contours R(t) = 1 + sum_k a_k cos(k t + f_k), filled through a random colour ramp."""
    x, y = _grid(rng, n, 0.2, 0.15, 0.12)
    aspect = program.uniform(0.6, 1.6)
    r, t = np.hypot(x * aspect, y / aspect), np.arctan2(y / aspect, x * aspect)
    orders = np.arange(1, 9)
    a = program.normal(0, 1, 8) * program.choice([0.0, 0.12, 0.3], 8) + rng.normal(0, 0.015, (n, 8))
    f = program.uniform(0, 2 * np.pi, 8)
    waves = (a[:, :, None, None] * np.cos(orders[:, None, None] * t[:, None] + f[:, None, None])).sum(1)
    value = r / np.maximum(0.75 * (1 + waves), 0.15)
    rings, edge = int(program.integers(1, 5)), program.choice([2.0, 6.0, 20.0])
    if rings == 1:
        value = 1 / (1 + np.exp(edge * 2 * (value - 1)))
    else:
        value = 0.5 + 0.5 * np.tanh(edge / 3 * np.sin(np.pi * rings * value))
    ramp = np.stack([rng.uniform(0, 1, (n, 3)) for _ in range(int(program.integers(2, 4)))], axis=1)
    return _to_bytes(_ramp(value, ramp))


def pattern(program: np.random.Generator, rng: np.random.Generator, n: int) -> np.ndarray:
    """A random three-layer network of sines and other smooth functions from position to colour."""
    x, y = _grid(rng, n, 0.15, 0.2, 0.15)
    latent = rng.normal(0, 0.35, (n, 3, 1, 1)) * np.ones((1, 1, CANVAS, CANVAS))
    h = np.concatenate([np.stack([x, y, np.hypot(x, y)], axis=1), latent], axis=1)  # [n, 6, h, w]
    gain = program.uniform(1.0, 3.5)
    for _ in range(3):
        w = program.normal(0, gain / np.sqrt(h.shape[1]), (12, h.shape[1]))
        z = np.einsum("oc,nchw->nohw", w, h) + program.normal(0, 1, (12, 1, 1))
        bumps = np.exp(-(z[:, 8:10] ** 2))
        h = np.concatenate([np.sin(z[:, :4]), np.tanh(z[:, 4:8]), bumps, np.abs(z[:, 10:]) % 1.0], axis=1)
        gain = program.uniform(0.8, 1.8)
    colour = np.einsum("oc,nchw->nohw", program.normal(0, 0.8, (3, 12)), h) + program.normal(0, 0.4, (3, 1, 1))
    return _to_bytes(1 / (1 + np.exp(-1.5 * colour)).transpose(0, 2, 3, 1))


def noise(program: np.random.Generator, rng: np.random.Generator, n: int) -> np.ndarray:
    """Gaussian noise with an oriented power-law spectrum and a class's own colour covariance, sometimes cut off."""
    fx, fy = np.fft.fftfreq(CANVAS)[None, :], np.fft.fftfreq(CANVAS)[:, None]
    f, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    exponent, narrow = program.uniform(0.6, 2.6), program.choice([0.0, 0.0, 1.0, 3.0])
    centre = program.choice([0.0, program.uniform(0.06, 0.3)])
    band = np.exp(-(((f - centre) / 0.05) ** 2)) if centre else np.maximum(f, 1.0 / CANVAS) ** -exponent
    turn = program.uniform(0, np.pi) + rng.normal(0, 0.08, (n, 1, 1))
    amplitude = band * np.exp(narrow * (np.cos(2 * (angle - turn)) - 1))
    amplitude[:, 0, 0] = 0.0
    spectrum = np.fft.fft2(rng.normal(size=(n, 3, CANVAS, CANVAS))) * amplitude[:, None]
    field = np.fft.ifft2(spectrum).real
    field = field / np.maximum(field.std(axis=(2, 3), keepdims=True), 1e-9)
    if program.random() < 0.35:
        field = np.tanh(4 * (field - program.normal(0, 0.4)))
    mix = program.normal(0, 0.16, (3, 3)) * program.uniform(0.2, 1.6, 3)
    mean = program.uniform(0.15, 0.85, 3) + rng.normal(0, 0.06, (n, 1, 1, 3))
    return _to_bytes(np.einsum("oc,nchw->nhwo", mix, field) + mean)


def _outline(program: np.random.Generator) -> np.ndarray:
    """A closed outline [m, 2] around the origin: an ellipse, a regular polygon or star, or a blob."""
    kind = program.integers(4)
    m = 28 if kind in (0, 3) else int(program.integers(3, 9)) * (2 if kind == 2 else 1)
    t = np.arange(m) / m * 2 * np.pi + program.uniform(0, 2 * np.pi)
    r = np.ones(m)
    if kind == 2:
        r[::2] = program.uniform(0.35, 0.7)
    if kind == 3:
        r = r + sum(program.normal(0, 0.25 / k) * np.cos(k * t + program.uniform(0, 6)) for k in (1, 2, 3, 4, 5))
    stretch = np.array([1.0, program.uniform(0.35, 1.0)])
    a = program.uniform(0, np.pi)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return (np.stack([np.cos(t), np.sin(t)], axis=1) * r[:, None] * stretch) @ turn.T


def _turned(outline: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return outline @ np.array([[c, s], [-s, c]])


def _fill(colour: np.ndarray) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in np.clip(colour * 255, 0, 255))
    return r, g, b


def leaves(program: np.random.Generator, rng: np.random.Generator, n: int) -> np.ndarray:
    """Dead leaves: many copies of a class's outlines in its palette cover each other, sizes by a power law."""
    outlines = [_outline(program) for _ in range(int(program.integers(1, 4)))]
    palette = program.uniform(0, 1, (int(program.integers(2, 6)), 3))
    largest, exponent, free = program.uniform(0.15, 0.7), program.uniform(0.5, 3.0), program.choice([0.1, 3.0])
    made = []
    for _ in range(n):
        side = CANVAS * 2
        image = Image.new("RGB", (side, side), _fill(palette[0]))
        pen = ImageDraw.Draw(image)
        for _ in range(70):
            size = largest * side * (0.12 + 0.88 * rng.random() ** exponent)
            shape = _turned(outlines[rng.integers(len(outlines))], rng.normal(0, free)) * size
            colour = palette[rng.integers(len(palette))] + rng.normal(0, 0.07, 3)
            pen.polygon([tuple(p) for p in shape + rng.uniform(0, side, 2)], fill=_fill(colour))
        made.append(np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BOX)))
    return np.stack(made)


def thing(program: np.random.Generator, rng: np.random.Generator, n: int) -> np.ndarray:
    """An object of two to six parts in any colours before any background: only the arrangement is the class."""
    parts = [_outline(program) for _ in range(int(program.integers(2, 7)))]
    places = program.normal(0, 0.38, (len(parts), 2))
    sizes = program.uniform(0.15, 0.6, len(parts))
    tone = program.uniform(-0.35, 0.35, (len(parts), 1)) + program.normal(0, 0.12, (len(parts), 3))
    made = []
    for i in range(n):
        if i % 4:
            background = Image.fromarray((noise, pattern, leaves)[i % 3](rng, rng, 1)[0])
        else:
            background = Image.new("RGB", (CANVAS, CANVAS), _fill(rng.uniform(0, 1, 3)))
        side = CANVAS * 2
        image = background.resize((side, side), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(image)
        angle, scale = rng.normal(0, 0.2), side * 0.55 * np.exp(rng.normal(0, 0.2))
        shear = np.eye(2) + rng.normal(0, 0.15, (2, 2))
        base = rng.uniform(0.15, 0.85, 3)
        for part, place, size, shade in zip(parts, places + rng.normal(0, 0.04, places.shape), sizes, tone):
            body = _turned((part * size * np.exp(rng.normal(0, 0.1)) + place) @ shear, angle) * scale
            where = body + side / 2 + rng.normal(0, 0.03 * side, 2) * 0.2
            pen.polygon([tuple(p) for p in where], fill=_fill(base + shade))
        light = 1 + rng.normal(0, 0.15) * np.linspace(-1, 1, CANVAS)[:, None, None]
        made.append(_to_bytes(np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BOX)) / 255.0 * light))
    return np.stack(made)


FAMILIES: dict[str, Callable[[np.random.Generator, np.random.Generator, int], np.ndarray]] = {
    "fractal": fractal,
    "contour": contour,
    "pattern": pattern,
    "noise": noise,
    "leaves": leaves,
    "thing": thing,
}


def render(family: str, index: int, n: int, seed: int) -> np.ndarray:
    """``n`` drawings of class ``index`` of a family, uint8 [n, CANVAS, CANVAS, 3].

    >>> render("contour", 0, 2, seed=0).shape
    (2, 40, 40, 3)
    """
    number = list(FAMILIES).index(family)
    program = np.random.default_rng([seed, 2, number, index])
    return FAMILIES[family](program, np.random.default_rng([seed, 3, number, index]), n)
