from __future__ import annotations

import math
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tangentcl.data.transforms import ArrayTransform, ImageTransform, TokenTransform, crop_box, to_image
from tangentcl.errors import ConfigError, DataError

HALF = (0.5, 0.5, 0.5)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (4 + c)) * np.cos(y / (5 + c)) for c in range(3)], axis=-1)
    return np.clip(127 + 90 * waves + rng.normal(0, 10, waves.shape), 0, 255).astype(np.uint8)


def normalised(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).double() / 255
    return (values - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def cubic(t: np.ndarray, a: float = -0.5) -> np.ndarray:
    t = np.abs(t)
    inner = (a + 2) * t**3 - (a + 3) * t**2 + 1
    outer = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t < 1, inner, np.where(t < 2, outer, 0))


def resample_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Antialiased bicubic interpolation along one axis, written from its definition, [n_out, n_in]."""
    scale = n_in / n_out
    width = max(scale, 1.0)
    centres = (np.arange(n_out) + 0.5) * scale
    weights = cubic((np.arange(n_in)[None] + 0.5 - centres[:, None]) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = resample_matrix(image.shape[0], height), resample_matrix(image.shape[1], width)
    across = np.clip(np.rint(np.einsum("wx,yxc->ywc", columns, image.astype(float))), 0, 255)
    return np.clip(np.rint(np.einsum("hy,ywc->hwc", rows, across)), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (32, 32), (20, 24), (37, 37)])
def test_evaluation_is_resize_shorter_side_then_central_crop(height, width):
    size, crop_ratio = 28, 224 / 256
    shorter = math.floor(size / crop_ratio)
    new_h, new_w = (
        (shorter, int(shorter * width / height)) if height <= width else (int(shorter * height / width), shorter)
    )
    whole = resample(picture(height, width), new_h, new_w)
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
    expected = whole[top : top + size, left : left + size]
    item = ImageTransform(size, (0, 0, 0), (1, 1, 1))(picture(height, width), None)
    assert item.shape == (3, size, size)
    assert np.abs(item.numpy().transpose(1, 2, 0) * 255 - expected).max() <= 1.01  # fixed-point rounding


def test_values_are_normalised_per_channel():
    transform = ImageTransform(24, **IMAGENET, crop_ratio=1.0)
    item = transform(picture(24, 24), None)
    expected = normalised(Image.fromarray(picture(24, 24)), **IMAGENET)
    assert item.dtype == torch.float32
    assert torch.allclose(item.double(), expected, atol=1e-5)


def test_training_crop_is_crop_then_resize_then_flip():
    image = picture(30, 50)
    transform = ImageTransform(20, (0, 0, 0), (1, 1, 1), train=True, flip=0.5)
    flips = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        left, top, w, h = crop_box(50, 30, (0.05, 1.0), (3 / 4, 4 / 3), rng)
        flip = rng.random() < 0.5
        flips += flip
        expected = resample(image[top : top + h, left : left + w], 20, 20)
        expected = expected[:, ::-1] if flip else expected
        item = transform(image, np.random.default_rng(seed))
        assert np.abs(item.numpy().transpose(1, 2, 0) * 255 - expected).max() <= 1.01
    assert 10 < flips < 30


def test_crop_boxes_have_the_right_distribution():
    # In an image much larger than the crops no attempt is rejected, so the drawn quantities can be read off the boxes.
    rng = np.random.default_rng(0)
    width, height = 4000, 4000
    boxes = np.array([crop_box(width, height, (0.05, 0.5), (3 / 4, 4 / 3), rng) for _ in range(4000)])
    left, top, w, h = boxes.T
    area, log_ratio = w * h / (width * height), np.log(w / h)
    assert stats.kstest(area, stats.uniform(0.05, 0.45).cdf).pvalue > 0.01
    low, high = math.log(3 / 4), math.log(4 / 3)
    assert stats.kstest(log_ratio, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert stats.kstest((left + 0.5) / (width - w + 1), "uniform").pvalue > 0.01
    assert stats.kstest((top + 0.5) / (height - h + 1), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.05


def reference_boxes(width: int, height: int, n: int) -> np.ndarray:
    """Another writing of the algorithm, rejection sampling on whole vectors; [n, 2] widths and heights."""
    rng = np.random.default_rng(99)
    found = np.zeros((n, 2), dtype=int)
    open_ = np.ones(n, dtype=bool)
    for _ in range(10):
        area = rng.uniform(0.05, 1.0, n) * width * height
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), n))
        w, h = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
        fits = open_ & (w <= width) & (h <= height) & (w > 0) & (h > 0)
        found[fits] = np.stack([w, h], axis=1)[fits]
        open_ &= ~fits
    ratio = width / height
    found[open_] = (
        (width, round(width / (3 / 4)))
        if ratio < 3 / 4
        else (round(height * 4 / 3), height)
        if ratio > 4 / 3
        else (width, height)
    )
    return found


@pytest.mark.parametrize(("width", "height"), [(32, 32), (105, 60), (20, 80)])
def test_crop_sizes_agree_with_an_independent_writing(width, height):
    rng = np.random.default_rng(1)
    boxes = np.array([crop_box(width, height, (0.05, 1.0), (3 / 4, 4 / 3), rng) for _ in range(4000)])
    reference = reference_boxes(width, height, 4000)
    assert stats.ks_2samp(boxes[:, 2], reference[:, 0]).pvalue > 0.005
    assert stats.ks_2samp(boxes[:, 3], reference[:, 1]).pvalue > 0.005
    left, top, w, h = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()


def test_extreme_shapes_fall_back_to_the_central_box():
    assert crop_box(100, 4, (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (47, 0, 5, 4)
    assert crop_box(3, 100, (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (0, 48, 3, 4)
    for shape in ((1, 1), (1, 200), (300, 2)):
        image = np.zeros(shape, dtype=np.uint8)
        for rng in (None, np.random.default_rng(0)):
            assert ImageTransform(8, HALF, HALF, train=True)(image, rng).shape == (3, 8, 8)


def test_flip_zero_never_flips_and_flip_one_always_does():
    image = picture(16, 16)
    whole = {"train": True, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = ImageTransform(16, HALF, HALF, crop_ratio=1.0)(image, None)
    for seed in range(10):
        never = ImageTransform(16, HALF, HALF, **whole, flip=0.0)(image, np.random.default_rng(seed))
        always = ImageTransform(16, HALF, HALF, **whole, flip=1.0)(image, np.random.default_rng(seed))
        assert torch.equal(never, plain)
        assert torch.equal(always, plain.flip(2))


def test_all_randomness_comes_from_the_generator():
    transform = ImageTransform(16, HALF, HALF, train=True)
    image = picture(40, 40)
    one, two = (transform(image, np.random.default_rng((3, 1, 7))) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, transform(image, np.random.default_rng((3, 2, 7))))
    assert torch.equal(transform(image, None), ImageTransform(16, HALF, HALF)(image, None))


def test_every_kind_of_image_is_understood():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    expected = ImageTransform(8, HALF, HALF, crop_ratio=1.0)(grey, None)
    assert torch.equal(expected[0], expected[2])
    same = [grey[:, :, None], np.stack([grey] * 3, axis=-1), Image.fromarray(grey), grey / np.float32(255)]
    same += [Image.fromarray(grey).convert(mode) for mode in ("RGB", "RGBA", "LA", "P", "I")]
    same += [Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey.astype(np.float32) / 255)]
    for raw in same:
        assert torch.allclose(ImageTransform(8, HALF, HALF, crop_ratio=1.0)(raw, None), expected, atol=1e-6)
    bits = Image.fromarray(grey > 100)
    assert set(np.asarray(to_image(bits)).ravel().tolist()) == {0, 255}
    assert np.array_equal(np.asarray(to_image(grey > 100)), np.asarray(to_image(bits)))
    assert to_image(Image.new("CMYK", (3, 3))).mode == "RGB"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((3, 8, 8), dtype=np.uint8), r"got \[3, 8, 8\]. Try array.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 4), dtype=np.uint8), r"got \[8, 8, 4\]"),
        (np.zeros(8, dtype=np.uint8), r"got \[8\]"),
        (np.full((4, 4), 255.0), r"values in \[0, 1\], got 255 to 255"),
        (np.full((4, 4), -0.1), r"values in \[0, 1\]"),
        (np.full((4, 4), np.nan), r"values in \[0, 1\]"),
        (np.zeros((4, 4), dtype=np.int64), "got int64. Try astype"),
        ("a text", "got str"),
        (Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), "8 or 16 bits"),
    ],
)
def test_what_is_no_image_is_refused(raw, message):
    with pytest.raises(DataError, match=message):
        ImageTransform(8, HALF, HALF)(raw, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "at least 1 pixel"),
        ({"interpolation": "bicubc"}, "Did you mean 'bicubic'"),
        ({"flip": 1.5}, "probability"),
        ({"crop_ratio": 0}, "crop_ratio"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"mean": (0.5,)}, "three means"),
        ({"std": (1, 0, 1)}, "positive standard deviations"),
    ],
)
def test_image_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ImageTransform(**{"size": 8, "mean": HALF, "std": HALF, **settings})


def test_image_batches_and_descriptions():
    transform = ImageTransform(8, HALF, HALF, train=True, flip=0.0)
    assert transform.collate([transform(picture(9, 9), None)] * 3).shape == (3, 3, 8, 8)
    assert transform.describe()["flip"] == 0.0
    assert "crop_ratio" in ImageTransform(8, HALF, HALF).describe()
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(copy(picture(9, 9), None), transform(picture(9, 9), None))


def test_arrays_become_float32_and_are_copied():
    row = np.arange(3.0)
    item = ArrayTransform()(row, None)
    row[0] = 9
    assert item.tolist() == [0, 1, 2]
    assert ArrayTransform().collate([item, item]).shape == (2, 3)


def tokenizer(side: str = "right", pad: bool = True) -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[PAD]": 1, **{f"w{i}": i + 2 for i in range(50)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", padding_side=side, **names)


def test_tokens_are_padded_to_the_longest_text_of_the_batch():
    transform = TokenTransform(tokenizer(), 4)
    batch = transform.collate(["w0 w1 w2", "w3"])
    assert batch["input_ids"].tolist() == [[2, 3, 4], [5, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert transform.collate(["w0 w1 w2 w3 w4 w5"])["input_ids"].tolist() == [[2, 3, 4, 5]]


def test_tokens_agree_with_the_tokenizers_own_batches():
    texts = ["w1 w2", "w3", "unknown w4 w5 w6", "w3"]
    for side in ("right", "left"):
        transform = TokenTransform(tokenizer(side), 3)
        for batch in (texts, texts[1:], texts[::-1]):  # new, known and mixed texts
            expected = tokenizer(side)(batch, truncation=True, max_length=3, padding=True, return_tensors="pt")
            found = transform.collate(batch)
            assert torch.equal(found["input_ids"], expected["input_ids"])
            assert torch.equal(found["attention_mask"], expected["attention_mask"])


def test_a_tokenizer_without_padding_token_pads_with_zero():
    batch = TokenTransform(tokenizer(pad=False), 4).collate(["w0 w1", "w3"])
    assert batch["input_ids"].tolist() == [[2, 3], [5, 0]]


def test_only_texts_are_tokenised():
    with pytest.raises(DataError, match="Expected a text, got ndarray"):
        TokenTransform(tokenizer(), 4)(np.zeros(3), None)
    with pytest.raises(ConfigError, match="max_length"):
        TokenTransform(tokenizer(), 0)


def test_a_batch_of_known_texts_is_made_well_below_a_millisecond():
    transform = TokenTransform(tokenizer(), 32)
    texts = [" ".join(f"w{(i * j) % 50}" for j in range(5 + i % 12)) for i in range(32)]
    transform.collate(texts)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        transform.collate([transform(text, None) for text in texts])
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


def test_tokens_describe_themselves_and_can_be_sent_to_other_processes():
    transform = TokenTransform(tokenizer(), 4)
    assert transform.describe()["max_length"] == 4
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(copy.collate(["w1"])["input_ids"], transform.collate(["w1"])["input_ids"])
