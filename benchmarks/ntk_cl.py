"""CPU seconds of a training step and of a prediction of NTK-CL: as released against here, in ratios of one run.

    python -m benchmarks.ntk_cl [--sizes tiny small] [--repeat 3] [--quick] [--bf16]

Vision Transformers of size Ti and S at 224 x 224 pixels with random weights, batches of 16, a task of 10 classes after
90. *Naive* is `benchmarks.ntk_cl_naive`. *Exact* is the library with the same loss: before anything is timed, losses,
terms, gradients and scores of the two are compared on weights that are nowhere zero. Then, each alone and together:
*cached*, the features of the frozen passes known from before (``cached_views``) and, *with stem*, what all branches
share (``cached_stem``); *bf16*, autocast. Announced variants
are other methods: *half* adapts the last half of the blocks (``first_block``), *joint* has one pass for adapters and
prompts.

A step is forward, backward and SGD. Seconds are of this process with one thread, the least of several repetitions in
turn, so that other work on the machine counts little. The products of this processor in float32 and bf16 are measured
first: where it has no bf16 arithmetic of its own the rows with bf16 are left out, unless ``--bf16`` asks for them, and
their goals stay open.

    python -m benchmarks.ntk_cl --latency

One text at a time through all-MiniLM-L6-v2 (``TANGENTCL_MODELS``): branches as one batch against one after another.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ntk_cl_naive import ANCHOR, NaiveNTKCL
from tangentcl.data import ArrayTransform, Samples, Table, TaskStream, class_incremental, from_arrays
from tangentcl.methods import NTKCL
from tangentcl.nn import Backbone, backbone, branches
from tangentcl.nn.fusion import Fusion
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.stem_bank import stem_batch, stored_stems

SIZES = {"tiny": (192, 3), "small": (384, 6)}
BATCH, OLD, NEW, LR = 16, 90, 10, 0.01
LOSS, GRADIENT = 1e-5, 1e-5  # largest relative differences that count as equal
BF16_HELPS = 1.5  # times as many products per second as float32


@dataclass
class Problem:
    """One size: images, labels from 0, and the two computations on the same weights.

    Attributes:
        make: our method with other switches, at the same task.
        drawn: old prototypes of the dissimilarity.
    """

    images: Tensor
    labels: Tensor
    naive: NaiveNTKCL
    ours: NTKCL
    make: Callable[..., NTKCL]
    drawn: Tensor = field(default_factory=lambda: torch.arange(BATCH))


def vision_transformer(width: int, heads: int, image_size: int, depth: int) -> Backbone:
    """A backbone of random weights, from transformers."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        intermediate_size=4 * width,
        image_size=image_size,
    )
    return from_transformers(ViTModel(config, add_pooling_layer=False), name="random ViT")


def stream() -> TaskStream:
    """Labels of two tasks, 90 classes and then 10; the samples are never looked at."""
    labels = np.arange(OLD + NEW)
    x = np.random.default_rng(0).normal(size=(len(labels), 1)).astype(np.float32)
    source = from_arrays(x, labels, x + 1, labels, name="labels", modality="array")
    return class_incremental(source, base=OLD, increment=NEW).with_transforms(ArrayTransform(), ArrayTransform())


def problem(width: int, heads: int, *, image_size: int = 224, depth: int = 12, batch: int = BATCH) -> Problem:
    """Both computations with the same weights, nowhere zero, and dropout on."""
    features = vision_transformer(width, heads, image_size, depth)
    naive = NaiveNTKCL(features.model, n_old=OLD, n_new=NEW)
    with torch.no_grad():
        for name, p in naive.named_parameters():
            if not name.startswith("vit.") and name != "scale":
                p.copy_(torch.randn_like(p) * (0.02 if p.ndim > 1 else 0.1))
        naive.prototypes.copy_(torch.randn_like(naive.prototypes))
    naive.anchor = {name: p.detach() + 0.01 * torch.randn_like(p) for name, p in naive.held().items()}
    tasks = stream()

    def make(**switches: object) -> NTKCL:
        method = NTKCL(features, preset="released", prompts="linear", **switches)  # type: ignore[arg-type]
        method.begin_task(tasks[0])
        method.head.means.update(torch.randn(OLD, method.network.width), torch.arange(OLD))
        method.begin_task(tasks[1])
        return method

    ours = make()
    share_weights(naive, ours)
    torch.manual_seed(1)
    images, labels = torch.randn(batch, 3, image_size, image_size), torch.randint(NEW, (batch,))
    return Problem(images, labels, naive, ours, make)


def pairs(naive: NaiveNTKCL, ours: NTKCL) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, naive tensor and our tensor of everything that both have; the naive one has more, which does nothing."""
    bank = ours.network.bank
    assert bank is not None
    assert isinstance(ours.network.fusion, Fusion)
    assert ours.proxies is not None
    for adapters, maps, modules in (
        (naive.adapters_now, naive.maps_now, ours.network.current),
        (naive.adapters_mean, naive.maps_mean, bank.copy),
    ):
        for i, (mine, theirs) in enumerate(zip(modules["channel"], adapters)):  # type: ignore[index, arg-type]
            for part in ("down", "up"):
                for kind in ("weight", "bias"):
                    yield (
                        f"adapter {i} {part} {kind}",
                        getattr(getattr(theirs, part), kind),
                        getattr(getattr(mine, part), kind),
                    )
        for i, (mine, theirs) in enumerate(zip(modules["patch"], maps)):  # type: ignore[index, arg-type]
            yield f"map {i}", theirs.map.weight, mine.weight
            yield f"norm {i} weight", theirs.norm.weight, mine.norm.weight
            yield f"norm {i} bias", theirs.norm.bias, mine.norm.bias
    yield "fusion weight", naive.fusion.value.weight, ours.network.fusion.value.weight
    yield "fusion bias", naive.fusion.value.bias, ours.network.fusion.value.bias
    yield "proxies", naive.proxies, ours.proxies.weight
    yield "scale", naive.scale, ours.proxies.scale


@torch.no_grad()
def share_weights(naive: NaiveNTKCL, ours: NTKCL) -> None:
    """Our method gets the weights, prototypes and anchors of the naive one."""
    for _, theirs, mine in pairs(naive, ours):
        mine.copy_(theirs)
    ours.head.means.move(naive.prototypes.double())
    named = {id(mine): name for name, mine in ours.network.anchored().items()}
    held = {id(p): name for name, p in naive.held().items()}
    for _, theirs, mine in pairs(naive, ours):
        if id(mine) in named and id(theirs) in held:
            ours.previous.move_to({named[id(mine)]: naive.anchor[held[id(theirs)]]})


@contextmanager
def fixed_draw(drawn: Tensor) -> Iterator[None]:
    """Inside, the released dissimilarity takes these old prototypes in place of random ones."""
    original = torch.randperm

    def ordered(n: int, **keywords: object) -> Tensor:
        return drawn if n == OLD else original(n, **keywords)  # type: ignore[arg-type]

    torch.randperm = ordered  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randperm = original


@contextmanager
def without_dropout(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules are in evaluation mode."""
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()


def anchored_without_effect(p: Problem) -> float:
    """What the naive anchor holds besides: tensors that no output depends on, which ours has not."""
    alive = {id(theirs) for _, theirs, _ in pairs(p.naive, p.ours)}
    held = {name: value.detach() for name, value in p.naive.held().items() if id(value) not in alive}
    return sum(((value - p.naive.anchor[name]) ** 2).sum().item() for name, value in held.items())


def differences(p: Problem) -> dict[str, float]:
    """Largest relative differences of loss, terms, gradients and scores between the two computations."""
    with without_dropout(p.naive, p.ours), fixed_draw(p.drawn):
        theirs = p.naive.losses(p.images, p.labels, p.drawn)
        mine = p.ours.training_loss(p.images, p.labels + OLD)
        total, own = torch.stack(list(theirs.values())).sum(), torch.stack(list(mine.values())).sum()
        inert = ANCHOR * anchored_without_effect(p)
        found = {
            name: abs((theirs[name] - mine[name]).item() - (inert if name == "anchor" else 0.0))
            / max(abs(theirs[name].item()), 1.0)
            for name in theirs
        }
        found["loss"] = abs((total - own).item() - inert) / abs(total.item())
        trained = [(t, m) for _, t, m in pairs(p.naive, p.ours) if t.requires_grad and m.requires_grad]
        for a, b in zip(
            torch.autograd.grad(total, [t for t, _ in trained]), torch.autograd.grad(own, [m for _, m in trained])
        ):
            found["gradient"] = max(found.get("gradient", 0.0), float((a - b).norm() / a.norm().clamp(min=1e-12)))
        with torch.no_grad():
            scores = p.naive.predict(p.images)[:, :OLD]
            found["scores"] = float((scores - p.ours.predict(p.images)[:, :OLD]).abs().max())
    return found


@dataclass(frozen=True)
class Way:
    """One way to compute: what makes the loss of a batch, and under which precision."""

    name: str
    module: nn.Module
    loss: Callable[[], Tensor]
    predict: Callable[[], Tensor]
    precision: Callable[[], AbstractContextManager] = nullcontext


def bf16() -> AbstractContextManager:
    """Autocast on the CPU."""
    return torch.autocast("cpu", torch.bfloat16)


def stems(p: Problem, method: NTKCL) -> dict[str, Tensor]:
    """What all branches share, as a bank of views stores it."""
    positions = np.arange(len(p.images))
    samples = Samples(Table(p.images.numpy(), p.labels.numpy(), positions), transform=ArrayTransform())
    return stem_batch(stored_stems(method.network.model, samples, method.network.first_block, p.images.device))


def ways(p: Problem, *, variants: bool, half_precision: bool = True) -> list[Way]:
    """The naive computation first."""
    depth = len(p.ours.network.model.blocks)

    def of(
        name: str, method: NTKCL, *, cached: bool = False, stem: bool = False, precision: Callable = nullcontext
    ) -> Way:
        method.train()
        with torch.no_grad(), precision():
            frozen = method.network.frozen(p.images) if cached else None
            x = p.images if frozen is None else {"input": stems(p, method) if stem else p.images, "frozen": frozen}

        def loss() -> Tensor:
            return torch.stack(list(method.training_loss(x, p.labels + OLD).values())).sum()

        return Way(name, method, loss, lambda: method.predict(p.images), precision)

    naive = Way(
        "naive",
        p.naive,
        lambda: torch.stack(list(p.naive.losses(p.images, p.labels, p.drawn).values())).sum(),
        lambda: p.naive.predict(p.images),
    )
    steady = p.make(frozen_dropout=False)
    share_weights(p.naive, steady)
    found = [naive, of("exact", p.ours), of("cached", steady, cached=True)]
    found += [of("cached with stem", steady, cached=True, stem=True)]
    if half_precision:
        found += [
            of("bf16", p.ours, precision=bf16),
            of("cached + bf16", steady, cached=True, precision=bf16),
            of("cached with stem + bf16", steady, cached=True, stem=True, precision=bf16),
        ]
    if variants:
        half = p.make(frozen_dropout=False, first_block=depth // 2)
        joint = p.make(frozen_dropout=False, branches="joint")
        both = p.make(frozen_dropout=False, branches="joint", first_block=depth // 2)
        found += [
            of("half", half),
            of("half + cached", half, cached=True),
            of("joint", joint),
            of("joint + cached", joint, cached=True),
            of("joint + half + cached", both, cached=True),
        ]
    if variants and half_precision:
        found += [
            of("half + cached with stem + bf16", half, cached=True, stem=True, precision=bf16),
            of("joint + cached with stem + bf16", joint, cached=True, stem=True, precision=bf16),
            of("joint + half + cached with stem + bf16", both, cached=True, stem=True, precision=bf16),
        ]
    return found


def step_seconds(way: Way) -> float:
    """One step of SGD."""
    trained = [p for p in way.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9)
    start = time.process_time()
    with way.precision():
        loss = way.loss()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def predict_seconds(way: Way) -> float:
    """One batch."""
    way.module.eval()
    start = time.process_time()
    with torch.no_grad(), way.precision():
        way.predict()
    seconds = time.process_time() - start
    way.module.train()
    return seconds


def least(measure: Callable[[Way], float], chosen: list[Way], repeat: int) -> dict[str, float]:
    """The least seconds of each, taken in turn; one round before does not count."""
    weights = {way.name: {k: v.clone() for k, v in way.module.state_dict().items()} for way in chosen}
    found: dict[str, float] = {}
    for round_ in range(repeat + 1):
        for way in chosen:
            seconds = measure(way)
            if round_:
                found[way.name] = min(found.get(way.name, seconds), seconds)
    for way in chosen:
        way.module.load_state_dict(weights[way.name])
    return found


def products(dtype: torch.dtype) -> float:
    """Thousand million products and sums per second of a matrix product of the sizes met here."""
    a, b = torch.randn(BATCH * 197, 384).to(dtype), torch.randn(1536, 384).to(dtype)
    F.linear(a, b)
    start, rounds = time.process_time(), 5
    for _ in range(rounds):
        F.linear(a, b)
    return 2 * a.shape[0] * 384 * 1536 * rounds / (time.process_time() - start) / 1e9


def report(size: str, repeat: int, *, variants: bool, half_precision: bool) -> None:
    """Measure one size and print it."""
    p = problem(*SIZES[size])
    found = differences(p)
    print(f"\n{size}: {', '.join(f'{name} {value:.0e}' for name, value in found.items())} (relative differences)")
    if found["loss"] > LOSS or found["gradient"] > GRADIENT or found["scores"] > LOSS:
        raise SystemExit("the two computations differ: nothing is timed")
    chosen = ways(p, variants=variants, half_precision=half_precision)
    steps = least(step_seconds, chosen, repeat)
    predictions = least(predict_seconds, [way for way in chosen if "cached" not in way.name], repeat)
    print(f"{'':40s}{'step s':>9s}{'times':>8s}{'predict s':>12s}{'times':>8s}")
    for way in chosen:
        line = f"{way.name:40s}{steps[way.name]:9.2f}{steps['naive'] / steps[way.name]:8.2f}"
        if way.name in predictions:
            line += f"{predictions[way.name]:12.2f}{predictions['naive'] / predictions[way.name]:8.2f}"
        print(line)
    for kind, measured, name, goal in (
        ("step", steps, "exact", 1.15),
        ("step", steps, "cached + bf16", 3.5),
        ("step", steps, "cached with stem + bf16", 3.5),
        ("prediction", predictions, "bf16", 2.0),
    ):
        reached = f"{measured['naive'] / measured[name]:.2f} times" if name in measured else "not measured here"
        print(f"{kind}, {name}: {reached} (goal for size S {goal})")


def latency(repeat: int) -> None:
    """One short text: branches stacked and one after another."""
    encoder = backbone(os.path.join(os.environ["TANGENTCL_MODELS"], "all-MiniLM-L6-v2"))
    method = NTKCL(encoder, n_prompts=4).eval()
    transform = encoder.eval_transform
    assert transform is not None
    text = "how much money is left on my travel account"
    usual = branches.STACK_TOKENS
    print(f"{'texts':>6s}{'one after another ms':>22s}{'as one batch ms':>18s}{'times':>8s}")
    for n in (1, 2, 4, 8, 16, 32, 64):
        x, found = transform.collate([transform(text, None)] * n), {}
        for name, limit in (("apart", 0), ("stacked", 10**9)):
            branches.STACK_TOKENS = limit
            seconds = []
            with torch.no_grad():
                for _ in range(3 * repeat):
                    start = time.process_time()
                    for _ in range(max(1, 16 // n)):
                        method.network(x)
                    seconds.append((time.process_time() - start) / max(1, 16 // n))
            found[name] = min(seconds)
        apart, stacked = found["apart"], found["stacked"]
        print(f"{n:6d}{1e3 * apart:22.1f}{1e3 * stacked:18.1f}{apart / stacked:8.2f}")
    branches.STACK_TOKENS = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repetition, without the variants")
    parser.add_argument("--bf16", action="store_true", help="rows with bf16 also where it only slows down")
    parser.add_argument("--latency", action="store_true", help="one text at a time instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.latency:
        latency(arguments.repeat)
        return
    fast, half = products(torch.float32), products(torch.bfloat16)
    print(f"products of this processor: {fast:.0f} GFLOP/s in float32, {half:.0f} in bf16")
    helps = half >= BF16_HELPS * fast
    if not helps:
        print("it has no bf16 arithmetic of its own: what bf16 brings elsewhere cannot be measured here")
    repeat = 1 if arguments.quick else arguments.repeat
    for size in arguments.sizes:
        report(size, repeat, variants=not arguments.quick, half_precision=helps or arguments.bf16)


if __name__ == "__main__":
    main()
