"""Small streams and backbones that every test of methods and training shares."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tangentcl.data import ArrayTransform, ImageTransform, Source, TaskStream, class_incremental, from_arrays
from tangentcl.methods import Method
from tangentcl.nn import Backbone, from_module
from tangentcl.nn.backbone import PooledTokens
from tangentcl.nn.vit import Block
from tangentcl.training import Checkpoints, StageWatcher, StreamResult, TrainingPlan, run_stream

SIDE, TOKENS, WIDTH = 4, 3, 16


class TinyTransformer(nn.Module):
    """One attention block over [B, 3, 4] inputs, with dropout that a frozen backbone must never run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, WIDTH)
        self.drop = nn.Dropout(0.5)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(self.embed(x))
        h = h + self.o(nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h)))
        return (h + self.fc2(nn.functional.gelu(self.fc1(h)))).mean(dim=1)


class Killed(Exception):
    """Nobody waits for this one."""


def run_with_stops(
    build: Callable[[], Method],
    stream: TaskStream,
    plan: TrainingPlan,
    folder: Path,
    *,
    stops: Sequence[int] = (),
    every: int = 1,
    watchers: Callable[[], Sequence[StageWatcher]] = lambda: (),
) -> tuple[Method, StreamResult, list[tuple[str, dict[str, Any]]]]:
    """A run that is killed after so many events, goes on, is killed again, and so on, until it ends.

    Events are returned as a log would have them, without what changes from run to run (times, memory, stops).
    """
    log: list[tuple[str, dict[str, Any]]] = []
    for left in [*stops, None]:
        heard = iter(range(left) if left is not None else itertools.count())

        def emit(event: str, fields: dict[str, Any], heard: Iterator[int] = heard) -> None:
            if next(heard, None) is None:
                raise Killed
            log.append((event, fields))

        checkpoints = Checkpoints(folder, every=every, outside=lambda: len(log))
        state = checkpoints.found()
        del log[0 if state is None else state.newest["outside"] :]
        method = build()
        try:
            result = run_stream(method, stream, plan, emit=emit, checkpoints=checkpoints, watchers=watchers())
        except Killed:
            continue
        break
    changing = {"seconds", "samples_per_s", "peak_memory_bytes", "backbone_passes"}
    lasting = [(e, {k: v for k, v in f.items() if k not in changing}) for e, f in log if e != "resumed"]
    return method, result, lasting


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what a user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGENTCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(name="run_with_stops")
def _run_with_stops() -> Callable[..., Any]:
    return run_with_stops


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Adapters are drawn from the global generator: no test depends on which ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_backbone() -> Callable[[], Backbone]:
    """A function that makes the same small frozen backbone each time."""

    def make() -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module = TinyTransformer()
        sample = torch.zeros(2, TOKENS, SIDE)
        return from_module(module, None, WIDTH, name="tiny", modality="array", sample=sample)

    return make


class TinyBlocks(nn.Module):
    """Two pre-norm transformer blocks over [B, 3, 4] inputs, the first token standing for the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(SIDE, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, heads=2, expansion=2) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.project(x)
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


@pytest.fixture
def tiny_blocks() -> Callable[[], Backbone]:
    """A function that makes the same small frozen transformer of blocks each time."""

    def make() -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module = TinyBlocks()
        sample = torch.ones(2, TOKENS, SIDE)
        return from_module(module, PooledTokens("cls"), WIDTH, name="blocks", modality="array", sample=sample)

    return make


@pytest.fixture
def tiny_source() -> Source:
    """Six Gaussian classes of [3, 4] arrays, 20 training and 8 test samples each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, TOKENS, SIDE)) * 2

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(6), n)
        return (centres[labels] + rng.normal(size=(len(labels), TOKENS, SIDE))).astype(np.float32), labels

    return from_arrays(*draw(20), *draw(8), name="gaussians", modality="array")


@pytest.fixture
def tiny_stream(tiny_source: Source) -> TaskStream:
    """Three tasks of two classes."""
    stream = class_incremental(tiny_source, n_tasks=3)
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


@pytest.fixture(scope="session")
def pixel_backbone() -> Callable[..., Backbone]:
    """Stands for ``tangentcl.backbone``: one frozen layer over 8x8 pixels, in milliseconds."""

    def pixels(name: str = "bundled", *, pooling: str | None = None) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, WIDTH), nn.Tanh())
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        train = ImageTransform(8, mean, std, train=True, scale=(0.6, 1.0), flip=0.0)
        evaluation = ImageTransform(8, mean, std)
        return from_module(
            module, None, WIDTH, name=name, modality="image", train_transform=train, eval_transform=evaluation
        )

    return pixels


@pytest.fixture
def pixel_experiments(monkeypatch: pytest.MonkeyPatch, pixel_backbone: Callable[..., Backbone]) -> None:
    """Experiment files get `pixel_backbone` for every ``[backbone]``."""
    monkeypatch.setattr("tangentcl.experiments.build.backbone", pixel_backbone)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """$TANGENTCL_DATA, or the test skips."""
    return _folder("TANGENTCL_DATA")


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """$TANGENTCL_MODELS, or the test skips."""
    return _folder("TANGENTCL_MODELS")


CLASSIFIER_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat and a dog ran home now"


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers sequence classifier with classes "animal" and "place", as ``save_pretrained`` leaves it."""
    import transformers

    folder = tmp_path_factory.mktemp("classifier")
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        vocab_size=len(CLASSIFIER_WORDS.split()),
        id2label={0: "animal", 1: "place"},
        label2id={"animal": 0, "place": 1},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text(CLASSIFIER_WORDS.replace(" ", "\n"), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    return folder
