"""Made-up records that look like real ones: learning curves, forgetting, several seeds, one joint reference."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tangentcl.records import RecordWriter, write_checksums
from tangentcl.records.forecasts import TaskForecast, write_forecast
from tangentcl.reports.svg import text_width

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SVG = "{http://www.w3.org/2000/svg}"

# method: accuracy when learned, what each later task takes away, loss terms, seconds, parameters, stored samples
METHODS = {
    "finetune": (0.97, 0.16, ("cross_entropy",), 31.0, 147_456, 0),
    "ncm": (0.93, 0.012, (), 2.5, 0, 0),
    "replay": (0.96, 0.05, ("cross_entropy", "distillation"), 54.0, 147_456, 500),
    "joint": (0.965, 0.0, ("cross_entropy",), 78.0, 147_456, 12_000),
}


def accuracies(method: str, n_tasks: int, per_task: int, per_class: int, seed: int, names=None) -> dict:
    """Counts per class from a decaying accuracy; the matrix follows from the counts, so both agree."""
    rng = np.random.default_rng([seed, n_tasks, len(method)])
    start, decay, *_ = METHODS[method]
    n_classes = n_tasks * per_task
    correct = np.full((n_tasks, n_classes), np.nan)
    hard = rng.beta(8, 1.2, n_classes)
    for t in range(n_tasks):
        for c in range((t + 1) * per_task):
            p = start * hard[c] ** 0.3 * np.exp(-decay * (t - c // per_task) * (1.5 - hard[c]))
            correct[t, c] = rng.binomial(per_class, min(p, 1))
    if method == "joint":
        correct[:-1] = np.nan
    matrix = correct.reshape(n_tasks, n_tasks, per_task).sum(axis=2) / (per_task * per_class)
    names = names or [f"class {c}" for c in range(n_classes)]
    tasks = [list(range(k * per_task, (k + 1) * per_task)) for k in range(n_tasks)]
    return {
        "scenario": "class",
        "task_names": [f"{names[t[0]]} to {names[t[-1]]}" for t in tasks],
        "class_names": names,
        "task_classes": tasks,
        "n_test": [per_task * per_class] * n_tasks,
        "matrix": matrix,
        "class_correct": correct,
        "class_total": [per_class] * n_classes,
    }


def environment(stream: str, seed: int) -> dict:
    return {
        "tangentcl": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "packages": {"numpy": "2.4.6", "transformers": "5.1.0", "peft": "0.19.0", "accelerate": "1.12.0"},
        "platform": "Linux x86_64",
        "device": "cpu",
        "precision": "float32",
        "processes": 1,
        "threads": 1,
        "git_revision": "0123456789abcdef",
        "git_dirty": False,
        "backbone": {"name": "bundled", "sha256": "ab" * 32, "pooling": "mean", "n_parameters": 2_700_000},
        "stream": {"name": stream, "fingerprint": f"sha256:{stream}", "class_order": [3, 1, 4, 1, 5, seed]},
        "protocol": {
            "checkpoint": "bundled (abababab)",
            "split": "the source's own test split",
            "class_order": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3],
            "averaging": "sample mean over seen classes",
            "normalisation": "mean 0.5, std 0.5",
            "batch": 32,
            "selection": "last step, nothing selected",
        },
    }


def write_run(
    folder: Path,
    method: str,
    seed: int,
    *,
    n_tasks=5,
    per_task=2,
    per_class=36,
    label=None,
    stream="digits",
    experiment=None,
    names=None,
    log_every=20,
    steps=200,
) -> Path:
    """One finished run in ``folder/experiment/label/seed-s``."""
    _, _, terms, seconds, parameters, stored = METHODS[method]
    label, experiment = label or method, experiment or stream
    config = {
        "name": experiment,
        "seed": seed,
        "label": label,
        "stream": {"name": stream, "n_tasks": n_tasks, "order_seed": seed},
        "backbone": {"name": "bundled"},
        "plan": {"epochs": 5, "batch_size": 32, "lr": 0.01},
        "method": {"name": method},
    }
    rng = np.random.default_rng(seed)
    place = folder / "runs" / experiment.replace("/", "_") / method / f"seed-{seed}"
    with RecordWriter(place, config, environment(stream, seed)) as record:
        record.event("run_started")
        for t in [n_tasks - 1] if method == "joint" else range(n_tasks):
            record.event("task_started", {"task": t, "name": f"task {t}", "n_train": 300, "n_classes": per_task})
            for step in range(log_every, steps + 1, log_every) if terms else ():
                decay = np.exp(-4 * step / steps)
                values = {
                    n: (2.3 * decay + 0.02) * (0.3 if i else 1) * rng.uniform(0.8, 1.2) for i, n in enumerate(terms)
                }
                if t == 0:
                    values.pop("distillation", None)
                record.event("step", {"task": t, "epoch": step // 50, "step": step, "terms": values, "lr": 0.01,
                                      "samples_per_s": 900.0})  # fmt: skip
            record.event("task_trained", {
                "task": t, "steps": steps, "seconds": seconds * rng.uniform(0.9, 1.1) / n_tasks,
                "trainable_parameters": parameters, "stored_samples": stored,
                "peak_memory_bytes": 300 * 2**20 + 2000 * parameters * (t + 1) // 8,
            })  # fmt: skip
            record.event("evaluated", {"task": t, "seconds": 0.9, "accuracy": [None] * n_tasks})
        record.accuracy(**accuracies(method, n_tasks, per_task, per_class, seed, names))
        record.event("run_finished", {"seconds": seconds + n_tasks})
    return place


def margins(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    others = np.where(np.eye(outputs.shape[1], dtype=bool)[labels], -np.inf, outputs)
    return outputs[np.arange(len(labels)), labels] - others.max(axis=1)


def quality(drift: np.ndarray, real: np.ndarray, accuracy_error: float) -> dict:
    error = float(np.sum((drift - real) ** 2) / np.sum(real**2))
    sizes = np.linalg.norm(drift, axis=1), np.linalg.norm(real, axis=1)
    ranks = [s.argsort().argsort() for s in sizes]
    return {
        "cosine": float(np.sum(drift * real) / np.linalg.norm(drift) / np.linalg.norm(real)),
        "r2": 1 - error,
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "relative_error": error**0.5,
        "accuracy_error": accuracy_error,
        "flip_auc": None,
    }


def split(what: str, of: np.ndarray, names: list[str], right: tuple[np.ndarray, ...]) -> list[dict]:
    """Accuracy by class or by past task."""
    rows = []
    for k in np.unique(of):
        now, predicted, real = (None if r is None else float(r[of == k].mean()) for r in right)
        counts = {"n": int((of == k).sum()), "now": now, "predicted": predicted, "real": real}
        rows.append({what: int(k), "name": names[k], **counts})
    return rows


def at_risk(names: list[str], labels: np.ndarray, right: np.ndarray, found: list[np.ndarray | None]) -> list[dict]:
    now, predicted, real = found
    worst = [i for i in np.argsort(predicted) if right[i]][:10]
    return [
        {"id": int(i), "class": int(labels[i]), "name": names[labels[i]], "margin_now": float(now[i]),
         "margin_predicted": float(predicted[i]), "margin_real": None if real is None else float(real[i])}
        for i in worst
    ]  # fmt: skip


def modes(energy: np.ndarray, labels: np.ndarray, names: list[str]) -> dict:
    cumulative = np.sort(energy)[::-1].cumsum() / max(energy.sum(), 1e-300)
    ranks = {f"rank{s}": int(np.argmax(cumulative >= s / 100)) + 1 if energy.sum() else 0 for s in (90, 95, 99)}
    top = [
        {"eigenvalue": 10.0 / (k + 1), "share": float(energy[k] / max(energy.sum(), 1e-300)),
         "classes": [{"class": int(labels[k]), "name": names[labels[k]], "share": 0.7}],
         "samples": [{"id": int(k), "class": int(labels[k]), "name": names[labels[k]], "loading": 0.4}]}
        for k in np.argsort(-energy)[:5]
    ]  # fmt: skip
    return {"n_spaces": len(energy), **ranks, "stable_rank": 2.0, "effective_rank": 3.0, "outside_share": 0.0,
            "n_samples": len(labels), "kronecker_bound": None, "top": top}  # fmt: skip


class Page(HTMLParser):
    """Tags, ids and nesting; void elements need no end tag."""

    VOID = {"meta", "link", "br", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action"):
                self.addresses.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked_page(path: Path) -> str:
    """The text of a page that is well-formed, safe and needs nothing from elsewhere."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert all(a[1:] in page.ids for a in page.addresses if a.startswith("#"))
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    return text


def made_up_forecast(
    task: int,
    *,
    per_task: int = 2,
    n: int = 120,
    noise: float = 0.4,
    truth: bool = True,
    exact: bool = False,
    band: bool = False,
    scale: float = 1.5,
    seed: int = 0,
    names: list[str] | None = None,
) -> TaskForecast:
    """A forecast before a task, 0-based: random drift, a truth ``noise`` away from it, every number from the arrays."""
    rng = np.random.default_rng([seed, task])
    seen, total = task * per_task, (task + 1) * per_task
    names = names or [f"class {c}" for c in range(total)]
    labels = np.arange(n) % seen
    past = labels // per_task
    outputs = rng.normal(0, 1, (n, total)) + 3 * np.eye(total)[labels]
    drift = scale * rng.normal(0.3, 1, (n, 1)) * rng.normal(0, 1, total)
    real = drift + noise * scale * rng.normal(0, 1, drift.shape) if truth else None
    energy = np.square(rng.normal(0, 1, min(n, 60))) * np.exp(-np.arange(min(n, 60)) / 6) * scale**2
    right = [
        outputs[:, :seen].argmax(1) == labels,
        (outputs + drift).argmax(1) == labels,
        (outputs + real).argmax(1) == labels if truth else None,
    ]
    now, predicted, after = (None if r is None else float(r.mean()) for r in right)
    found = [margins(outputs[:, :seen] if seen > 1 else outputs, labels), margins(outputs + drift, labels),
             margins(outputs + real, labels) if truth else None]  # fmt: skip
    lost = [None if r is None else right[0] & ~r for r in right[1:]]
    gap = 0.8 * noise + 0.02
    level = "high" if gap < 0.25 else "medium" if gap < 0.6 else "low"
    sentence = "Exact: it equals training up to rounding." if exact else f"Trust is {level}: off by {100 * gap:.0f} %."
    tasks = [f"{names[t * per_task]} to {names[(t + 1) * per_task - 1]}" for t in range(task + 1)]
    summary = {
        "task": task, "name": tasks[-1], "status": "forecast", "reason": None, "form": "exact" if exact else "bilinear",
        "exact": exact, "notes": [], "sentence": sentence, "n_old": n, "n_old_available": n, "samples_note": "",
        "trust": None if exact else {"gap": gap, "linearisation_error": gap / 2, "kernel_drift": None, "level": level,
                                     "sentence": sentence},
        "accuracy": {"now": now, "predicted": predicted, "real": after,
                     "low": max(predicted - 0.05, 0) if band else None,
                     "high": min(predicted + 0.05, 1) if band else None},
        "classes": split("class", labels, names, right), "tasks": split("task", past, tasks, right),
        "at_risk": at_risk(names, labels, right[0], found),
        "flips": {"predicted": int(lost[0].sum()), "real": int(lost[1].sum()) if truth else None,
                  "both": int((lost[0] & lost[1]).sum()) if truth else None},
        "modes": modes(energy, labels, names),
        "quality": quality(drift, real, predicted - after) if truth and scale else None,
        "cost": {"forecast_seconds": 0.25, "training_seconds": 5.0 if truth else None, "forward_passes": 4.0 * n},
        "recipe": {"optimizer": "sgd", "lr": 0.02, "head_lr": None, "steps": 40},
    }  # fmt: skip
    arrays = {"labels": labels, "tasks": past, "outputs": outputs.astype("f4"), "drift": drift.astype("f4"),
              "energy": energy, "values": np.linspace(10, 1, len(energy)),
              "multiplicity": np.full(len(energy), total)}  # fmt: skip
    if real is not None:
        arrays["real_drift"] = real.astype("f4")
    return TaskForecast(task, tasks[-1], summary, arrays)


def refused_forecast(task: int, reason: str = "the loss is not the recipe's") -> TaskForecast:
    summary = {"task": task, "name": f"task {task}", "status": "refused", "reason": reason, "exact": False}
    return TaskForecast(task, f"task {task}", summary, {})


def parsed_svg(svg: str) -> ElementTree.Element:
    """The root of a figure, after checks that hold for all: ids, a description, text inside the picture, no NaN."""
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    ids = {e.get("id") for e in root if e.tag in (SVG + "title", SVG + "desc")}
    assert set(root.get("aria-labelledby").split()) == ids
    assert root.find(SVG + "desc").text
    _, _, width, height = map(float, root.get("viewBox").split())
    for e in root.iter(SVG + "text"):
        assert 0 <= float(e.get("x")) <= width, e.text
        assert 0 <= float(e.get("y")) <= height, e.text
        if e.get("text-anchor") == "start":
            assert float(e.get("x")) + text_width(e.text, float(e.get("font-size"))) <= width + 8, e.text
    assert "nan" not in svg.replace("finetune", "").lower()
    return root


@pytest.fixture(scope="session")
def parse():
    return parsed_svg


def phone_width(path: Path, folder: Path) -> int:
    """Width in pixels that a page needs on a phone of 390, in a browser that reports no error."""
    frame = folder / "phone.html"
    content = html.escape(path.read_text(encoding="utf-8").replace("<details>", "<details open>"))
    frame.write_text(
        f'<iframe id="f" width="390" height="800" srcdoc="{content}"></iframe><pre id="o"></pre>'
        "<script>f.onload = () => {o.textContent = 'width ' + f.contentDocument.documentElement.scrollWidth}</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    found = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    width = re.search(r"width (\d+)", found.stdout)
    assert width, found.stderr
    assert "CONSOLE" not in found.stderr
    return int(width[1])


@pytest.fixture
def browse(tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    return lambda path: phone_width(path, tmp_path)


@pytest.fixture(scope="session")
def checked():
    return checked_page


@pytest.fixture(scope="session")
def forecast():
    return made_up_forecast


@pytest.fixture(scope="session")
def save():
    """Write a forecast into a record's folder as a run does."""

    def write(folder: Path, forecast: TaskForecast) -> None:
        write_forecast(folder, forecast)
        write_checksums(folder)

    return write


@pytest.fixture(scope="session")
def refused():
    return refused_forecast


@pytest.fixture(scope="session")
def write():
    return write_run


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> list[Path]:
    """4 methods x 3 seeds x 5 tasks."""
    folder = tmp_path_factory.mktemp("digits")
    return [write_run(folder, method, seed) for method in METHODS for seed in (0, 1, 2)]


@pytest.fixture(scope="session")
def intents(tmp_path_factory) -> list[Path]:
    """2 methods x 2 seeds x 15 tasks x 10 classes, with names as long as real ones."""
    folder = tmp_path_factory.mktemp("intents")
    words = ("transfer", "credit limit", "international visa", "change accent", "what are your hobbies", "maybe")
    names = [f"{words[c % len(words)]} {c}" for c in range(150)]
    return [
        write_run(folder, m, s, n_tasks=15, per_task=10, per_class=30, stream="clinc150", names=names, label=label)
        for m, label in (
            ("finetune", "sequential LoRA, all logits, rank 8"),
            ("ncm", "nearest class mean"),
            ("joint", "joint"),
        )
        for s in (0, 1)
    ]
