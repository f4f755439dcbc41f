"""``python -m tangentcl.pretraining.evaluate``: transfer of frozen features to digits, Omniglot and CIFAR-10.

Two classifiers on frozen features: the nearest class mean, by cosine after subtracting the training mean and by
Euclidean distance, and a linear probe (L2-regularised logistic regression on standardised features, LBFGS,
regularisation chosen on a fifth of the training data, then refitted on all of it). Beside the bundled weights stand
raw pixels and the same network as it was initialised. None of the three data sets was seen in pre-training.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tangentcl.errors import DataError, TangentclError, import_extra, nearest
from tangentcl.nn.vit import BUNDLED, SmallViT, bundled_card, load_bundled

Split = tuple[Tensor, Tensor, Tensor, Tensor]  # train images [n, 3, 32, 32] in [0, 1] and labels [n], the same for test
POOLINGS = {"cls": lambda t: t[:, 0], "mean": lambda t: t[:, 1:].mean(1)}


def digits(seed: int = 0) -> Split:
    """scikit-learn's 8x8 digits, bilinearly enlarged to 32x32; stratified 70 / 30."""
    datasets = import_extra("sklearn.datasets", extra="test", purpose="the digits transfer test")
    bunch = datasets.load_digits()
    small = torch.tensor(bunch.images[:, None] / 16.0, dtype=torch.float32)
    images = F.interpolate(small, 32, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    labels, rng = torch.tensor(bunch.target), np.random.default_rng(seed)
    train, test = [], []
    for c in range(10):
        where = rng.permutation(np.flatnonzero(bunch.target == c))
        cut = round(0.7 * len(where))
        train.append(where[:cut])
        test.append(where[cut:])
    a, b = torch.from_numpy(np.concatenate(train)), torch.from_numpy(np.concatenate(test))
    return images[a], labels[a], images[b], labels[b]


def _square(image: Image.Image) -> Tensor:
    resized = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255


def omniglot(data: Path) -> Split:
    """136 characters of five alphabets: the first ten drawings of each train, the other ten test."""
    with zipfile.ZipFile(data / "omniglot_small1" / "images_background_small1.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png") and "__MACOSX" not in n)
        images = torch.stack([_square(Image.open(io.BytesIO(archive.read(n)))) for n in names])
    folders = [n.rsplit("/", 1)[0] for n in names]
    order = sorted(set(folders))
    labels = torch.tensor([order.index(f) for f in folders])
    train = torch.tensor([int(n.rsplit("_", 1)[1][:2]) <= 10 for n in names])
    return images[train], labels[train], images[~train], labels[~train]


def cifar10(data: Path, n_train: int = 5000) -> Split:
    """CIFAR-10: the first 5,000 training images train, all 10,000 test images test."""
    parquet = import_extra("pyarrow.parquet", extra="data", purpose="the CIFAR-10 transfer test")
    made: list[Tensor] = []
    for name, n in (("train", n_train), ("test", 10_000)):
        rows = parquet.read_table(data / "cifar10" / f"{name}.parquet").slice(0, n).to_pydict()
        made.append(torch.stack([_square(Image.open(io.BytesIO(cell["bytes"]))) for cell in rows["image"]]))
        made.append(torch.tensor(rows["label"]))
    return made[0], made[1], made[2], made[3]


def nearest_mean(x: Tensor, y: Tensor, test: Tensor, *, cosine: bool) -> Tensor:
    """Classes [m] of test features [m, d]: that of the nearest class mean of x [n, d], y [n].

    Args:
        x: training features [n, d].
        y: training classes [n].
        test: test features [m, d].
        cosine: subtract the training mean, scale every feature to length one, and compare by cosine;
            otherwise compare the features as they are by Euclidean distance.
    """
    if cosine:
        centre = x.mean(0)
        x, test = F.normalize(x - centre, dim=1), F.normalize(test - centre, dim=1)
    means = torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])
    if cosine:
        return (test @ F.normalize(means, dim=1).T).argmax(1)
    return torch.cdist(test, means).argmin(1)


def fit_logistic(x: Tensor, y: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """Logistic regression: argmin_W mean cross-entropy(x W' + b, y) + penalty / 2 |W|^2, by LBFGS."""
    w = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    b = torch.zeros(len(w), requires_grad=True)
    solver = torch.optim.LBFGS([w, b], max_iter=200, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ w.T + b, y) + 0.5 * penalty * w.square().sum()
        value.backward()
        return value

    solver.step(closure)
    return lambda z: (z @ w.T + b).detach()


def linear_probe(x: Tensor, y: Tensor, test: Tensor, seed: int = 0) -> Tensor:
    """Classes [m] of test features [m, d] by logistic regression, its penalty chosen on a fifth of x, y."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-4)
    x, test = (x - mean) / std, (test - mean) / std
    rng, held = np.random.default_rng(seed), torch.zeros(len(y), dtype=torch.bool)
    for c in y.unique().tolist():
        where = rng.permutation(np.flatnonzero(y.numpy() == c))
        held[torch.from_numpy(where[: max(1, len(where) // 5)])] = True
    scores = {}
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1):
        predict = fit_logistic(x[~held], y[~held], penalty)
        scores[penalty] = float((predict(x[held]).argmax(1) == y[held]).float().mean())
    best = max(scores, key=lambda p: (scores[p], p))
    return fit_logistic(x, y, best)(test).argmax(1)


@torch.no_grad()
def tokens(model: SmallViT, images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Images [n, 3, 32, 32] in [0, 1] -> CLS and mean token [n, 2, d]."""
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    out = [model((part - shift) / scale) for part in images.split(200)]
    return torch.cat([torch.stack([pool(t) for pool in POOLINGS.values()], dim=1) for t in out])


def accuracies(x: Tensor, y: Tensor, test: Tensor, labels: Tensor, probe: bool) -> dict[str, float]:
    """Per cent right on the test features: nearest mean by cosine and by Euclidean distance, linear probe."""
    found = {
        "ncm_cosine": nearest_mean(x, y, test, cosine=True),
        "ncm_euclidean": nearest_mean(x, y, test, cosine=False),
    }
    if probe:
        found["probe"] = linear_probe(x, y, test)
    return {name: round(100 * float((p == labels).float().mean()), 1) for name, p in found.items()}


def evaluate(
    folder: Path, data: Path, sets: list[str], *, probe: bool = True, baselines: bool = True
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies {data set: {features: {classifier: per cent}}} of the weights in ``folder``.

    Raises:
        DataError: an unknown data set, or one that is not under ``data``.
    """
    known = {"digits": None, "omniglot": "omniglot_small1", "cifar10": "cifar10"}
    for name in sets:
        if name not in known:
            raise DataError(f"There is no transfer test '{name}'.{nearest(name, known)}")
        place = known[name]
        if place is not None and not (data / place).is_dir():
            raise DataError(f"Expected {place}/ under {data}. Try --data, TANGENTCL_DATA or fewer --sets.")
    card, trained = bundled_card(folder), load_bundled(folder)
    networks = {"bundled": trained}
    if baselines:
        networks["random"] = SmallViT(**card["architecture"], seed=card["seed"]).eval()
    load: dict[str, Callable[[], Split]] = {
        "digits": digits, "omniglot": lambda: omniglot(data), "cifar10": lambda: cifar10(data),
    }  # fmt: skip
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in sets:
        images, y, test_images, labels = load[name]()
        rows: dict[str, dict[str, float]] = {}
        for network, model in networks.items():
            x, test = (tokens(model, i, card["mean"], card["std"]) for i in (images, test_images))
            for k, pooling in enumerate(POOLINGS):
                rows[f"{network} {pooling}"] = accuracies(x[:, k], y, test[:, k], labels, probe)
        if baselines:
            rows["pixels"] = accuracies(images.flatten(1), y, test_images.flatten(1), labels, probe)
        table[name] = rows
    return table


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(prog="python -m tangentcl.pretraining.evaluate", description=__doc__)
    p.add_argument("--weights", type=Path, default=BUNDLED, help="folder with bundled.safetensors and card.json")
    p.add_argument("--data", type=Path, default=Path(os.environ.get("TANGENTCL_DATA", "data")))
    p.add_argument("--sets", nargs="+", default=["digits", "omniglot", "cifar10"])
    p.add_argument("--quick", action="store_true", help="nearest mean of the bundled weights only")
    p.add_argument("--write", action="store_true", help="write the accuracies into card.json")
    p.add_argument("--threads", type=int, default=1)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Print the table of accuracies and, with --write, put it into the card; 0, or 2 after a refusal."""
    a = parser().parse_args(arguments)
    torch.set_num_threads(a.threads)
    try:
        table = evaluate(a.weights, a.data, a.sets, probe=not a.quick, baselines=not a.quick)
    except TangentclError as error:
        print(error, file=sys.stderr)
        return 2
    for name, rows in table.items():
        for features, row in rows.items():
            print(f"{name:9} {features:14} " + "  ".join(f"{k} {v:5.1f}" for k, v in row.items()), flush=True)
    if a.write:
        card = bundled_card(a.weights)
        card["accuracy"].update(table)
        (a.weights / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
