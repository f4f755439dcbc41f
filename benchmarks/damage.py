"""Ways in which the bytes of a file are damaged."""

from __future__ import annotations

import random
from dataclasses import dataclass

WAYS = ("cut", "flip", "delete", "insert", "zeros", "twice", "swap", "noise")
LONGEST = 64  # bytes that one fault touches, but for a cut


@dataclass(frozen=True)
class Damage:
    """One fault.

    Attributes:
        way: one of ``WAYS``: cut off, flip a bit, delete a span, insert bytes, fill a span with zeros, repeat a span,
            swap two spans, or replace everything by ``content``.
        at, to: two places, as shares of the file from 0 to 1.
        content: what is inserted; its length is that of a span, its first byte tells the bit.

    >>> Damage("cut", at=0.5, to=0.0, content=b"").of(b"abcd")
    b'ab'
    """

    way: str
    at: float
    to: float
    content: bytes

    def of(self, whole: bytes) -> bytes:
        """The damaged bytes; the very same where there is nothing to damage."""
        if self.way == "noise":
            return self.content
        if not whole:
            return self.content if self.way == "insert" else whole
        place, other = (min(int(share * len(whole)), len(whole) - 1) for share in (self.at, self.to))
        size = max(len(self.content), 1)
        span = whole[place : place + size]
        if self.way == "cut":
            return whole[:place]
        if self.way == "flip":
            bit = 1 << ((self.content[0] if self.content else 0) % 8)
            return whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        if self.way == "delete":
            return whole[:place] + whole[place + size :]
        if self.way == "insert":
            return whole[:place] + self.content + whole[place:]
        if self.way == "zeros":
            return whole[:place] + bytes(len(span)) + whole[place + size :]
        if self.way == "twice":
            return whole[:place] + span + whole[place:]
        first, second = sorted((place, other))
        size = min(size, second - first, len(whole) - second)
        one, two = whole[first : first + size], whole[second : second + size]
        return whole[:first] + two + whole[first + size : second] + one + whole[second + size :]


def drawn(generator: random.Random) -> Damage:
    """A random fault."""
    content = generator.randbytes(generator.randint(1, LONGEST))
    return Damage(generator.choice(WAYS), generator.random(), generator.random(), content)
