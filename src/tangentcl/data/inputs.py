"""Raw inputs of a table: anything with a length that gives one raw sample per index, decoded when asked for."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from tangentcl.errors import DataError

if TYPE_CHECKING:
    from tangentcl.data.samples import Samples


class Inputs(Protocol):
    """What ``Table.inputs`` must offer; a list, an array or one of the classes below."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class LazyInputs(Protocol):
    """Inputs that are not in memory decoded; they say cheaply what they contain."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def digest(self) -> bytes: ...

    def content_keys(self) -> list[Hashable] | None: ...


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode one encoded image completely.

    Raises:
        DataError: the bytes are no image that Pillow reads, or they break off; ``name`` is in the message.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cause = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"Cannot decode the image {name} ({cause}). Remove it from the data or replace it.") from error
    return image


class EncodedImages:
    """Images kept as encoded bytes in one buffer (PNG, JPEG, ...), decoded one by one when asked for.

    Args:
        buffer: the encoded images one after the other, uint8 [total].
        offsets: image i is ``buffer[offsets[i]:offsets[i + 1]]``, int64 [n + 1].
        name: where they came from, for error messages.
    """

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray, name: str) -> None:
        self.buffer, self.offsets, self.name = buffer, offsets, name

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Image.Image:
        return decode_image(self._encoded(index), f"number {index} of {self.name}")

    def digest(self) -> bytes:
        return _hash(self.buffer, self.offsets)

    def content_keys(self) -> list[Hashable] | None:
        return [_hash(self._encoded(i)) for i in range(len(self))]

    def _encoded(self, index: int) -> bytes:
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].tobytes()


class Picked:
    """Some of other inputs, by position."""

    def __init__(self, inputs: Inputs, positions: np.ndarray) -> None:
        self.inputs, self.positions = inputs, np.asarray(positions, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[int(self.positions[index])]

    def digest(self) -> bytes:
        return _hash(digest(self.inputs), self.positions)

    def content_keys(self) -> list[Hashable] | None:
        keys = content_keys(self.inputs)
        return None if keys is None else [keys[p] for p in self.positions]


class Chained:
    """Several inputs one after the other."""

    def __init__(self, parts: Sequence[Inputs]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0] + [len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][int(index - self.starts[part])]

    def digest(self) -> bytes:
        return _hash(*(digest(part) for part in self.parts))

    def content_keys(self) -> list[Hashable] | None:
        keys: list[Hashable] = []
        for part in self.parts:
            found = content_keys(part)
            if found is None:
                return None
            keys += found
        return keys


def digest(inputs: Inputs) -> bytes:
    """Hash of what the inputs contain, 16 bytes; files are represented by their names and sizes.

    >>> digest(["a", "b"]) == digest(["a", "b"]) != digest(["b", "a"])
    True
    """
    if hasattr(inputs, "digest"):
        return inputs.digest()
    if isinstance(inputs, np.ndarray) and inputs.dtype != object:
        return _hash(repr((inputs.shape, inputs.dtype.str)).encode(), inputs)
    return _hash(*(repr(key).encode() for key in content_keys(inputs) or []))


def content_keys(inputs: Inputs) -> list[Hashable] | None:
    """One key per sample, equal for equal content; None where finding out would mean reading too many files."""
    if hasattr(inputs, "content_keys"):
        return inputs.content_keys()
    return [_sample_key(inputs[i]) for i in range(len(inputs))]


def identities(samples: Samples) -> list[bytes]:
    """What tells each sample from others, equal for equal content, so that what was computed of it is found again.

    The content itself, or, where that would mean reading too many files, name, size and time of change of its file.
    """
    inputs, positions = samples.table.inputs, samples.positions.tolist()
    if isinstance(inputs, np.ndarray) and inputs.dtype != object:
        return [repr(_sample_key(inputs[p])).encode() for p in positions]
    keys = content_keys(inputs)
    if keys is None:
        keys = inputs.file_keys() if hasattr(inputs, "file_keys") else [(digest(inputs), i) for i in range(len(inputs))]
    return [repr(keys[p]).encode() for p in positions]


def _sample_key(raw: Any) -> Hashable:
    if isinstance(raw, str):
        return raw
    if isinstance(raw, Image.Image):
        return (raw.mode, raw.size, _hash(raw.tobytes()))
    array = np.asarray(raw)
    return (array.shape, _hash(array))


def _hash(*parts: bytes | np.ndarray) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = np.ascontiguousarray(part).view(np.uint8).data if isinstance(part, np.ndarray) else part
        state.update(len(data).to_bytes(8, "little") if isinstance(data, bytes) else data.nbytes.to_bytes(8, "little"))
        state.update(data)
    return state.digest()
