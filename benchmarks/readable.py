"""Every kind of file that the library reads: how a valid one is made, and what reading it gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import readable_data as data
from benchmarks import readable_models as models
from benchmarks import readable_records as records
from benchmarks.readable_data import Make, Read
from tangentcl.data.image_lists import coda_lists, domain_lists, lists
from tangentcl.experiments.config import load_experiment, load_published
from tangentcl.nn.vit import bundled_card

EXPERIMENT = """name = "small"
seeds = [0, 1]
save = true
[source]
name = "digits"
[stream]
kind = "class_incremental"
n_tasks = 5
[plan]
epochs = 2
lr = 0.05
[[method]]
name = "finetune"
label = "head, all"
tune = "head"
[[method]]
name = "ncm"
[[published]]
label = "NCM"
source = "a paper"
last = 92.2
"""
RECORD = (
    *("config.toml", "environment.json", "events.jsonl", "accuracy.json", "status.json", "checksums.json"),
    *("forecasts/task-001.json", "forecasts/task-001.safetensors", "theory/task-001.json"),
)
LISTS = {"train.txt": lists, "imagenet-r_train.yaml": coda_lists, "real_test.txt": domain_lists}
POOLING = ("1_Pooling/config.json", "sentence_bert_config.json")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: for tables.
        file: the file that is damaged, inside the folder that ``make`` fills.
        make: writes valid files into an empty folder.
        read: what the library reads from that folder, as something that can be compared.
        checked: whether a checksum protects the content, so that reading anything else is a fault of the library.
        slow: takes tenths of a second to read.
    """

    name: str
    file: str
    make: Make
    read: Read
    checked: bool = False
    slow: bool = False

    @property
    def group(self) -> str:
        """What stands before the colon of its name."""
        return self.name.split(":")[0]


def _experiment(folder: Path) -> Any:
    return load_experiment(folder / "small.toml")


def _experiment_set(folder: Path) -> Any:
    return load_experiment(folder / "small.toml", settings=["plan.epochs=5", "method.ncm.label=ncm", "method.x=1"])


def kinds() -> list[Kind]:
    """All of them."""
    return [*_of_runs(), *_of_texts(), *_of_images(), *_of_models()]


def _of_runs() -> list[Kind]:
    small = data.text("small.toml", EXPERIMENT)
    return [
        *(Kind(f"record: {file}", file, records.record, records.read_record, checked=True) for file in RECORD),
        *(
            Kind(f"unfinished record: {file}", file, records.running, records.read_record)
            for file in RECORD
            if file != "checksums.json"
        ),
        Kind("learner", "learner.safetensors", records.learner, records.learner_reader(), checked=True),
        Kind("state of a run", "state-000.safetensors", records.state, records.read_run_state, checked=True),
        Kind("features", "space/features.safetensors", records.features, records.read_features, checked=True),
        Kind("moments", "moments/task-000.safetensors", records.moments, records.read_moments, checked=True),
        Kind("sketch", "sketch.safetensors", records.sketch, records.read_sketch, checked=True),
        Kind("guard", "guard.safetensors", records.guard, records.read_guard, checked=True),
        Kind("experiment", "small.toml", small, _experiment),
        Kind("experiment: --set", "small.toml", small, _experiment_set),
        Kind("experiment: published", "small.toml", small, lambda folder: load_published(folder / "small.toml")),
    ]


def _of_texts() -> list[Kind]:
    rows = data.ROWS
    files = {
        "a.csv": data.table(","),
        "a.tsv": data.table("\t"),
        "a.json": json.dumps(rows),
        "splits.json": json.dumps({"train": rows, "test": rows}),
        "a.jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows),
    }
    saved = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    return [
        *(
            Kind(f"{Path(file).suffix[1:]}: {file}", file, data.text(file, text), data.source_of(file))
            for file, text in files.items()
        ),
        Kind("json: clinc150", "data_full.json", data.clinc, data.read_clinc),
        Kind("json: clinc150 domains", "domains.json", data.clinc, data.read_clinc),
        Kind("parquet: texts", "a.parquet", data.parquet_texts, data.source_of("a.parquet")),
        *(
            Kind(f"saved data set: {file}", f"saved/{file}", data.saved_dataset, data.source_of("saved"), slow=True)
            for file in saved
        ),
    ]


def _of_images() -> list[Kind]:
    suffixes = ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm")
    return [
        Kind("parquet: images", "a.parquet", data.parquet_images, data.source_of("a.parquet")),
        Kind("parquet: to forecast", "a.parquet", data.parquet_images, data.read_to_forecast),
        Kind("zip of images", "a.zip", data.zipped, data.source_of("a.zip")),
        *(Kind(f"lists of images: {file}", file, data.listed, data.lists_by(reader)) for file, reader in LISTS.items()),
        *(Kind(f"image: {suffix}", f"dog/a.{suffix}", data.images(suffix), data.source_of("")) for suffix in suffixes),
    ]


def _of_models() -> list[Kind]:
    texts = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt", *POOLING)
    return [
        Kind("bundled backbone", "bundled.safetensors", models.bundled, models.read_bundled, checked=True, slow=True),
        Kind("bundled card", "card.json", models.bundled, bundled_card),
        *(
            Kind(f"weights: {suffix}", f"w.{suffix}", models.weights(f"w.{suffix}"), models.weights_of(f"w.{suffix}"))
            for suffix in ("safetensors", "pt")
        ),
        *(Kind(f"model folder: text, {f}", f, models.encoder, models.read_backbone, slow=True) for f in texts),
        *(
            Kind(f"model folder: images, {f}", f, models.vision, models.read_backbone, slow=True)
            for f in ("config.json", "preprocessor_config.json")
        ),
        *(
            Kind(f"model folder: classifier, {f}", f, models.classifier, models.read_classifier, slow=True)
            for f in ("config.json", "model.safetensors")
        ),
    ]
