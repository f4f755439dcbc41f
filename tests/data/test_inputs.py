from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tangentcl.data.inputs import Chained, EncodedImages, Picked, content_keys, decode_image, digest
from tangentcl.errors import DataError


def encoded(values: list[int]) -> list[bytes]:
    out = []
    for value in values:
        buffer = io.BytesIO()
        Image.new("L", (3, 2), value).save(buffer, "PNG")
        out.append(buffer.getvalue())
    return out


def encoded_images(values: list[int]) -> EncodedImages:
    parts = encoded(values)
    offsets = np.cumsum([0] + [len(part) for part in parts])
    return EncodedImages(np.frombuffer(b"".join(parts), dtype=np.uint8), offsets, "memory")


def test_encoded_images_decode_one_by_one():
    images = encoded_images([10, 200, 30])
    assert [images[i].getpixel((0, 0)) for i in range(3)] == [10, 200, 30]
    assert len(images) == 3


def test_chained_and_picked_find_the_right_sample():
    chain = Chained([["a", "b"], [], ["c"]])
    assert [chain[i] for i in range(len(chain))] == ["a", "b", "c"]
    picked = Picked(chain, np.array([2, 0]))
    assert [picked[i] for i in range(2)] == ["c", "a"]
    assert content_keys(picked) == ["c", "a"]
    with pytest.raises(IndexError):
        chain[3]


@pytest.mark.parametrize("damage", [b"", b"no image at all", None])
def test_a_corrupt_image_is_named(damage):
    data = encoded([5])[0][:45] if damage is None else damage
    with pytest.raises(DataError, match=r"birds/7\.png"):
        decode_image(data, "birds/7.png")


def test_digest_depends_on_content_order_and_shape():
    same = np.arange(6, dtype=np.float32)
    digests = [
        digest(same.reshape(2, 3)),
        digest(same.reshape(3, 2)),
        digest(same.reshape(2, 3) + 1),
        digest(encoded_images([1, 2])),
        digest(encoded_images([2, 1])),
        digest(["ab", "c"]),
        digest(["a", "bc"]),
        digest(Picked(["a", "b"], np.array([0]))),
        digest(Picked(["a", "b"], np.array([1]))),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(encoded_images([1, 2])) == digests[3]


def test_content_keys_agree_for_equal_content():
    array = np.array([[1, 2], [3, 4], [1, 2]])
    keys = content_keys(array)
    assert keys[0] == keys[2] != keys[1]
    images = content_keys([Image.new("L", (2, 2), 1), Image.new("L", (2, 2), 1), Image.new("L", (4, 1), 1)])
    assert images[0] == images[1] != images[2]


def test_an_image_of_too_many_pixels_is_named_and_not_decoded(monkeypatch):
    data = encoded([1])[0]
    for pixels in (4, 2):  # Pillow itself warns above the first and refuses above twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with pytest.raises(DataError, match=r"image a\.png"):
            decode_image(data, "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6)
    assert decode_image(data, "a.png").size == (3, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(data, "a.png").size == (3, 2)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICO", "TGA"])
def test_formats_that_nobody_needs_are_not_opened(kind):
    """Pillow would start Ghostscript to read an EPS file."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)
    with pytest.raises(DataError, match=r"Cannot decode the image a \(none of the formats PNG, JPEG"):
        decode_image(buffer.getvalue(), "a")
