"""Which exact back end computes a kernel: counted in forward passes, multiplications and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.kernels.network import Network

BACKENDS = ("auto", "layers", "jacobian", "matrix_free")
PRODUCT = 4.5  # forward passes per sample that one K v costs: reverse 1.7-2.1, forward mode 2.4-3.0
CHUNKS = {"layers": 8, "jacobian": 4, "matrix_free": 16}  # samples at a time


@dataclass(frozen=True)
class Choice:
    """How a kernel is computed, and why.

    Attributes:
        backend: "layers", "jacobian" or "matrix_free".
        reason: in words.
        forward_passes: estimated work besides the contraction, in forward passes of one sample; for matrix_free per
            product.
        bytes: estimated memory for Jacobians and kernel, besides one chunk's activations.
        chunk: samples at a time; tile: chunks whose Jacobians are held at once.
        factored: weights whose per-sample gradients are never formed.
        keep_rows: the operator holds two Jacobians instead of the kernel (more outputs than parameters).
    """

    backend: str
    reason: str
    forward_passes: float
    bytes: float
    chunk: int
    tile: int = 1
    factored: frozenset[str] = frozenset()
    keep_rows: bool = False

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.reason}; about {self.forward_passes:.3g} forward passes of a sample, "
            f"{self.bytes / 1e6:.3g} MB"
        )


@dataclass(frozen=True)
class Size:
    """What a choice depends on: samples n1 and n2 (0: symmetric), outputs C, bytes per number."""

    n1: int
    n2: int
    C: int
    itemsize: int

    @property
    def samples(self) -> int:
        return self.n1 + self.n2

    @property
    def held(self) -> int:
        """Samples whose Jacobians are held."""
        return self.n2 or self.n1

    @property
    def kernel_bytes(self) -> float:
        return float(self.n1 * self.held * self.C**2 * self.itemsize)


def factored_weights(network: Network, tokens: dict[str, int], size: Size, memory: float) -> frozenset[str]:
    """Weights [d_out, d_in] for which the token Gram is cheaper than forming the gradients of every sample.

    Multiplications per pair of samples: T^2 (d_in + C^2 (d_out + 1)) for the token Gram; C^2 d_out d_in, and the share
    C T d_out d_in (n1 + n2) / (n1 n2) of forming the gradients, otherwise. Where formed gradients exceed the memory,
    the smaller of the two decides.
    """
    C, chosen = size.C, set()
    share = size.samples / (size.n1 * size.held)
    formed_bytes = float(size.held * C * network.n_parameters * size.itemsize)
    for name, T in tokens.items():
        p = network.parameters.get(name)
        if p is None or p.ndim != 2:
            continue
        d_out, d_in = p.shape
        gram = T**2 * (d_in + C**2 * (d_out + 1))
        formed = p.numel() * (C**2 + C * T * share)
        smaller = T * d_in + C * T * d_out < C * p.numel()
        if gram < formed or (formed_bytes > memory and smaller):
            chosen.add(name)
    return frozenset(chosen)


def row_bytes(network: Network, tokens: dict[str, int], factored: frozenset[str], size: Size) -> float:
    """Bytes that the Jacobian of one sample takes, as rows and factors."""
    numbers = float(size.C * network.n_parameters)
    for name in factored:
        d_out, d_in = network.parameters[name].shape
        numbers += tokens[name] * (d_in + size.C * d_out) - size.C * d_out * d_in
    return numbers * size.itemsize


def choose(
    network: Network,
    size: Size,
    *,
    backend: str,
    memory: float,
    chunk: int | None,
    products: int | None,
    layers: str,
    tokens: dict[str, int],
) -> Choice:
    """The rule, in this order, for ``backend="auto"``.

    1. ``products * 4.5 < 1 + C`` products K v are wanted, or the kernel does not fit: matrix_free.
    2. Every parameter belongs to a layer with a rule: layers. ``layers`` says why not, "" if so.
    3. jacobian.

    Both build Jacobians in ``(1 + C) n`` forward passes. Jacobians that do not fit are computed in tiles, those of the
    other samples once per tile.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.{nearest(backend, BACKENDS)}")
    if backend == "layers" and layers:
        raise ModelError(f"backend='layers' cannot be used: {layers}. Use backend='jacobian'.")
    n_rows = min(size.n1, size.held) * size.C
    keep_rows = n_rows > network.n_parameters
    least = (size.samples * size.C * network.n_parameters * size.itemsize) if keep_rows else size.kernel_bytes
    reason = "asked for"
    if backend == "auto":
        backend, reason = "layers", "every parameter belongs to a layer with a rule"
        if products is not None and products * PRODUCT < 1 + size.C:
            backend, reason = "matrix_free", f"{products} products are cheaper than {size.C} rows per sample"
        elif least > memory:
            backend, reason = "matrix_free", f"the kernel takes {least / 1e9:.3g} GB of {memory / 1e9:.3g}"
        elif layers:
            backend, reason = "jacobian", layers
    chunk = CHUNKS[backend] if chunk is None else chunk
    if backend == "matrix_free":
        passes = PRODUCT / 2 * (size.n1 + size.held)
        return Choice(backend, reason, passes, 2.0 * network.n_parameters * size.itemsize, chunk)
    factored: frozenset[str] = frozenset()
    if backend == "layers" and not keep_rows:
        factored = factored_weights(network, tokens, size, memory)
    per_sample = row_bytes(network, tokens, factored, size)
    chunk = max(1, int(min(chunk, memory / 4 / per_sample)))
    n_chunks = -(-size.held // chunk)
    tile = (
        n_chunks if keep_rows else max(1, int(min(n_chunks, (memory - size.kernel_bytes) / (per_sample * chunk) - 2)))
    )
    n_tiles = -(-n_chunks // tile)
    again = size.n1 * (n_tiles - 1) * (1.0 if size.n2 else 0.5)
    passes = (1 + size.C) * (size.samples + again)
    if n_tiles > 1:
        reason += f"; {n_tiles} tiles, because all Jacobians together would take {per_sample * size.held / 1e9:.3g} GB"
    # a tile, the chunk beside it, and the pieces that the chunk is put together from
    held = least if keep_rows else size.kernel_bytes + per_sample * chunk * (tile + 2)
    return Choice(backend, reason, passes, held, chunk, tile, factored, keep_rows)
