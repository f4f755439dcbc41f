"""Features of frozen backbones on disk: computed once, whatever runs ask for them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tangentcl.data import Samples, Table, Task, TaskStream, Transform
from tangentcl.data.inputs import identities
from tangentcl.data.transforms import TokenTransform
from tangentcl.errors import ConfigError, DataError
from tangentcl.files import Damaged, write_whole
from tangentcl.nn.backbone import Backbone, to_device
from tangentcl.nn.engine import Engine, build_engine, check_engine
from tangentcl.nn.extract import FeatureExtractor, evaluating, extract_features
from tangentcl.nn.feature_segment import KEY, Segment, write_segment
from tangentcl.nn.known import FeatureTransform
from tangentcl.nn.matmul_route import fastest_route, matmul_route
from tangentcl.processes import agreed, is_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
ROWS = 2048  # samples of a segment
LIMIT = 20_000_000_000
PROBED = 32  # samples that routes of products are compared on
Say = Callable[[int, int], None]  # samples computed so far, and to be computed


def default_folder() -> Path:
    """``$TANGENTCL_CACHE``, or ``~/.cache/tangentcl``."""
    return Path(os.environ.get("TANGENTCL_CACHE") or Path.home() / ".cache" / "tangentcl") / "features"


@dataclass(frozen=True)
class Space:
    """What features of one kind are: the same backbone, transform, precision, kind of device and engine.

    Attributes:
        about: as JSON values.
        folder: of its segments, named after the hash of ``about``.
    """

    about: dict[str, Any]
    folder: Path


class Rows:
    """Features by position, read from memory-mapped segments when asked for: the inputs of a table."""

    def __init__(self, parts: list[NDArray[np.float32]], part: NDArray[np.int64], row: NDArray[np.int64]) -> None:
        self.parts, self.part, self.row = parts, part, row

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return self.parts[self.part[index]][self.row[index]]


class FeatureStore:
    """Keeps features of frozen backbones, sample by sample, for all methods, tasks, seeds, orders and processes.

    A feature is found by the content of its sample and by its `Space`: weights, pooling, transform, precision, kind
    of device and engine. Files carry checksums: one that is cut off or changed is computed anew. Several processes may
    use one store.

    In float32 on a CPU torch multiplies by the fastest exact route, which is measured once and remembered in the
    folder (`tangentcl.nn.matmul_route`). Another engine is checked against torch before its features are kept. Neither
    the measurement nor the check counts as passes.

    Args:
        folder: None for `default_folder`.
        limit: bytes; beyond it the files that were not used for longest are removed.
        engine: what computes features: ``"torch"``; on a CPU ``"openvino"`` or, in float32, ``"onnxruntime"``.

    Attributes:
        computed: samples that went through a backbone for this store.
        rebuilt: files that were damaged.

    Raises:
        ConfigError: no positive limit, or no such engine.
    """

    def __init__(self, folder: str | Path | None = None, *, limit: int = LIMIT, engine: str = "torch") -> None:
        if limit < 1:
            raise ConfigError(f"limit is a number of bytes above 0, got {limit}")
        self.engine = check_engine(engine)
        self.folder, self.limit = Path(folder) if folder is not None else default_folder(), limit
        self.computed, self.rebuilt = 0, 0
        self._open: dict[Path, Segment] = {}
        self._engines: dict[Path, Engine] = {}

    def space(self, backbone: Backbone, transform: Transform, precision: str) -> Space | None:
        """Where features of this kind lie; None where code of the user's own decides what they are."""
        features = repr(backbone.features)
        if backbone.card.source == "module" or " at 0x" in features:
            return None
        card = dataclasses.asdict(backbone.card)
        about = {
            "format": FORMAT,
            "backbone": {key: card[key] for key in ("name", "sha256", "pooling", "modality")},
            "features": features,
            "width": backbone.width,
            "transform": {**transform.describe(), **_tokenizer(transform)},
            "precision": precision,
            "device": backbone.device.type,
            **({} if self.engine == "torch" else {"engine": self.engine}),
        }
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        return Space(about, self.folder / name)

    def rows(
        self,
        backbone: Backbone,
        samples: Samples,
        space: Space,
        *,
        batch_size: int = 256,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        say: Say = lambda done, total: None,
    ) -> Rows:
        """Features of the samples, in order; what is not there yet is computed, and kept piece by piece.

        Several processes of one run share the work; all have to call this.

        Raises:
            DataError: the folder cannot be written. ModelError: as `extract_features`, or an engine that computes
                something else than torch. MissingExtra: the engine is not installed.
        """
        keys = [hashlib.blake2b(part, digest_size=KEY).digest() for part in identities(samples)]
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        self._make(space)
        known = self._known(space)
        missing = agreed([position for key, position in first.items() if key not in known])
        done = 0
        while done < len(missing):
            part = missing[done : done + ROWS]
            with self._locked(space):
                known = self._known(space)  # of another run, meanwhile
                part = agreed([position for position in part if keys[position] not in known])
                if part:
                    chosen = samples.subset(part)
                    extractor = self._extractor(backbone, chosen, space)
                    with autocast(), self._route(backbone, chosen, space):
                        found, _ = extract_features(extractor, chosen, batch_size)
                    self.computed += len(part)
                    if is_first():
                        write_segment(space.folder, [keys[position] for position in part], found.numpy())
                agreed(None)  # written
            done = min(done + ROWS, len(missing))
            say(done, len(missing))
        known = self._known(space)
        self._evict()
        places = list({id(one[0]): one[0] for one in known.values()}.values())
        number = {id(segment): i for i, segment in enumerate(places)}
        if lost := [position for position, key in enumerate(keys) if key not in known]:
            raise DataError(
                f"{len(lost)} features that were kept in {space.folder} are gone. Is the folder on a disk that all "
                "processes share, and large enough? Try again, or run with --no-cache."
            )
        found_at = [known[key] for key in keys]
        part_of = np.array([number[id(segment)] for segment, _ in found_at], dtype=np.int64)
        return Rows([s.features for s in places], part_of, np.array([row for _, row in found_at], dtype=np.int64))

    def stream(
        self,
        stream: TaskStream,
        backbone: Backbone,
        *,
        precision: str = "fp32",
        batch_size: int = 256,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        say: Say = lambda done, total: None,
    ) -> TaskStream | None:
        """The same stream with features in place of samples under the evaluation transform; None without a `space`.

        Samples without a transform get those of the backbone. Training samples become features, too, where their
        transform is the evaluation transform.
        """
        if stream[0].train.transform is None and backbone.eval_transform is not None:
            stream = stream.with_transforms(
                backbone.train_transform or backbone.eval_transform, backbone.eval_transform
            )
        transform = stream[0].test.transform
        space = None if transform is None else self.space(backbone, transform, precision)
        if transform is None or space is None:
            return None
        parts = [part for task in stream for part in (task.train_eval, task.test)]
        everything = Samples.concat([part.with_transform(transform) for part in parts])
        rows = self.rows(backbone, everything, space, batch_size=batch_size, autocast=autocast, say=say)
        new = FeatureTransform(transform.describe())
        edges = np.cumsum([0] + [len(part) for part in parts])

        def replaced(number: int, samples: Samples) -> Samples:
            place = slice(edges[number], edges[number + 1])
            inputs = Rows(rows.parts, rows.part[place], rows.row[place])
            return Samples(Table(inputs, samples.labels, samples.ids), transform=new)

        tasks: list[Task] = []
        for i, task in enumerate(stream):
            trained, test = replaced(2 * i, task.train_eval), replaced(2 * i + 1, task.test)
            still = task.train.transform is not None and task.train.transform.describe() == transform.describe()
            tasks.append(
                dataclasses.replace(task, train=trained if still else task.train, train_eval=trained, test=test)
            )
        return dataclasses.replace(stream, tasks=tuple(tasks))

    def entries(self) -> list[tuple[dict[str, Any], int, int, float]]:
        """For each space: what it is, its files, their bytes, and when it was last used (seconds since 1970)."""
        found = []
        for folder in sorted(self.folder.glob("*/")):
            files = _files(folder.glob("*.safetensors"))
            try:
                about = json.loads((folder / "about.json").read_text())
            except (OSError, ValueError):
                about = {"damaged": folder.name}
            used = max((time for time, _, _ in files), default=0.0)
            found.append((about, len(files), sum(size for _, size, _ in files), used))
        return found

    def verify(self) -> list[tuple[Path, str]]:
        """Files that are damaged, with the reason. They are computed anew when asked for."""
        found = []
        for path in sorted(self.folder.glob("*/*.safetensors")):
            try:
                Segment(path)
            except (Damaged, OSError) as error:
                found.append((path, str(error)))
        return found

    def clear(self) -> int:
        """Remove everything; returns the bytes.

        Raises:
            DataError: the disk refuses.
        """
        size = sum(size for _, size, _ in _files(self.folder.rglob("*")))
        self._open.clear()
        try:
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be removed: {error.strerror or error}") from error
        return size

    def _extractor(self, backbone: Backbone, samples: Samples, space: Space) -> Backbone | FeatureExtractor:
        """What computes features of a space: the backbone, or an engine that was checked on some of the samples."""
        if self.engine == "torch":
            return backbone
        known = self._engines.get(space.folder)
        if known is None or known.backbone is not backbone:
            known = build_engine(self.engine, backbone, space.about["precision"], samples)
            self._engines = {space.folder: known}  # one at a time: it holds a copy of the weights
        return known

    def _route(self, backbone: Backbone, samples: Samples, space: Space) -> AbstractContextManager[None]:
        """The fastest exact way of products, where torch computes in float32 on a CPU; called under autocast."""
        plain = space.about["precision"] == "fp32" and not torch.is_autocast_enabled("cpu")
        if self.engine != "torch" or backbone.device.type != "cpu" or not plain:
            return nullcontext()
        middle = samples.short_first()[max(0, (len(samples) - PROBED) // 2) :][:PROBED]

        @torch.no_grad()
        def work() -> None:
            backbone.features(backbone.model, to_device(batch, backbone.device))

        route = "default"
        if is_first():
            batch, _ = next(samples.subset(middle).batches(PROBED))
            with evaluating(backbone):
                route = fastest_route(self.folder, key=space.folder.name, work=work)
        return matmul_route(agreed(route))

    def _make(self, space: Space) -> None:
        try:
            space.folder.mkdir(parents=True, exist_ok=True)
            about = space.folder / "about.json"
            if is_first() and not about.exists():
                write_whole(about, json.dumps(space.about, indent=1).encode())
        except OSError as error:
            raise DataError(
                f"features cannot be kept in {self.folder} ({error.strerror or error}). Name another folder in "
                "TANGENTCL_CACHE, or run with --no-cache."
            ) from error

    def _known(self, space: Space) -> dict[bytes, tuple[Segment, int]]:
        """Key -> segment and row, of everything in a space; files that are damaged are removed."""
        known: dict[bytes, tuple[Segment, int]] = {}
        for path in sorted(space.folder.glob("*.safetensors")):
            if path not in self._open:
                try:
                    self._open[path] = Segment(path)
                except FileNotFoundError:
                    continue  # removed by another process
                except (Damaged, OSError):
                    self.rebuilt += 1
                    _remove(path)
                    continue
                with suppress(OSError):  # a folder that only others write
                    os.utime(path)
            segment = self._open[path]
            known |= {key: (segment, row) for row, key in enumerate(segment.keys)}
        return known

    @contextmanager
    def _locked(self, space: Space) -> Iterator[None]:
        """One run at a time computes features of a space; where the file system has no locks, all do."""
        if not is_first() or fcntl is None:
            yield
            return
        with open(space.folder / "lock", "w") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _evict(self) -> None:
        """Down to the limit; what this process has open stays."""
        if not is_first():
            return
        files = _files(self.folder.glob("*/*.safetensors"))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            if path not in self._open:
                _remove(path)
                total -= size


def _tokenizer(transform: Transform) -> dict[str, str]:
    """What a tokenizer does beyond its description."""
    if not isinstance(transform, TokenTransform):
        return {}
    backend = getattr(transform.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(transform.tokenizer.get_vocab().items()))
    return {"tokenizer_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _files(paths: Iterable[Path]) -> list[tuple[float, int, Path]]:
    """When each file was last used, and its bytes; without those that another process has just removed."""
    found = []
    for path in paths:
        with suppress(FileNotFoundError):
            about = path.stat()
            found.append((about.st_mtime, about.st_size, path))
    return found


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be removed ({error.strerror or error}). Name another folder in TANGENTCL_CACHE, or run "
            "with --no-cache."
        ) from error
