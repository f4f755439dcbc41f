"""What is drawn for pre-training: the same from the same seed, varied within a class, and never a digit."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from tangentcl.pretraining import glyphs, strokes, textures
from tangentcl.pretraining.pool import PoolSpec, draw_pool, kept_pool

SMALL = PoolSpec(
    glyph_classes=3, glyph_drawings=2, stroke_classes=4, stroke_drawings=3, colour_classes={"noise": 2, "thing": 1},
    colour_drawings=2,
)  # fmt: skip


def test_no_digit_in_any_script_or_typeface_is_a_class() -> None:
    pytest.importorskip("matplotlib")
    classes = glyphs.glyph_classes()
    assert len(classes) == len(set(classes)) > 900
    digits = np.stack([glyphs.sketch(d, f) for d in "0123456789" for f in glyphs.FACES])
    for c in classes:
        assert unicodedata.numeric(c, None) is None
        assert not set("0123456789") & set(unicodedata.normalize("NFKD", c))
        assert not any(w in unicodedata.name(c) for w in ("DIGIT", "NUMBER"))
        assert c not in glyphs.HELD_OUT
        assert (digits @ glyphs.sketch(c)).max() <= 0.81


@pytest.mark.parametrize("character", list("09²₃④⑸⒍３𝟘𝟡٣๔½Ⅳ❺㊇➈"))
def test_digits_in_disguise_are_recognised(character: str) -> None:
    assert glyphs.is_digit_like(character)


def test_characters_come_from_the_seed_and_differ() -> None:
    a, b = strokes.characters(9, seed=3), strokes.characters(9, seed=3)
    assert all(np.array_equal(p, q) for x, y in zip(a, b) for p, q in zip(x.points, y.points))
    pictures = [strokes.render(c, 6, (0, 0)).mean(0) for c in a]
    assert min(np.abs(p - q).max() for i, p in enumerate(pictures) for q in pictures[:i]) > 20


@pytest.mark.parametrize("kind", strokes.KINDS)
def test_the_pen_starts_and_ends_at_the_control_points(kind: str) -> None:
    points = strokes._stroke(kind, None, np.random.default_rng(0))
    path = strokes.trace(kind, points)
    if kind != "arc":
        np.testing.assert_allclose(path[[0, -1]], points[[0, -1]], atol=1e-12)
    else:
        on_ellipse = (((path - points[0]) / points[1]) ** 2).sum(1)
        np.testing.assert_allclose(on_ellipse, 1.0)


@pytest.mark.parametrize("family", list(textures.FAMILIES))
def test_textures_come_from_the_seed_and_vary_within_a_class(family: str) -> None:
    a, b = textures.render(family, 1, 2, seed=0), textures.render(family, 1, 2, seed=0)
    other_class, other_seed = textures.render(family, 2, 2, seed=0), textures.render(family, 1, 2, seed=1)
    assert a.dtype == np.uint8
    assert a.shape == (2, 40, 40, 3)
    np.testing.assert_array_equal(a, b)
    assert (a[0] != a[1]).any()
    assert (a != other_class).any()
    assert (a != other_seed).any()


def test_pool_is_the_same_with_one_and_two_processes_and_from_disk(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    one, two = draw_pool(SMALL, workers=1), draw_pool(SMALL, workers=2)
    kept, read = kept_pool(SMALL, tmp_path), kept_pool(SMALL, tmp_path)
    for other in (two, kept, read):
        for name in ("ink", "ink_labels", "colour", "colour_labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.n_classes == 4 + 3 + 3
    assert one.n_strokes == 12
    assert sorted(set(one.ink_labels) | set(one.colour_labels)) == list(range(10))
