"""A run's learner as a folder that stands on its own: no data, no record, no pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from tangentcl.data import Samples
from tangentcl.errors import RecordError, TangentclError
from tangentcl.experiments.build import build_source, build_stream
from tangentcl.files import remove_parts, sealed, write_whole
from tangentcl.nn.hf_classifier import ADAPTER, ADAPTER_WEIGHTS
from tangentcl.records import Record
from tangentcl.serving.adapter import base_class, peft_model, write_adapter
from tangentcl.serving.description import EXPORT, Description, file_digest
from tangentcl.serving.load import load_predictor
from tangentcl.serving.model_card import CARD, model_card
from tangentcl.serving.onnx_file import CHECKED, ONNX, onnx_file
from tangentcl.serving.predictor import Predictor
from tangentcl.training.checkpoint import LEARNER, learned_tensors

OWN = (EXPORT, CARD, LEARNER, ADAPTER, ADAPTER_WEIGHTS, ONNX)  # files that an export may consist of


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, bytes by name of file, and what the export says of itself."""

    folder: Path
    sizes: dict[str, int]
    description: Description


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    after_task: int | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    backbone: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Make of a run's record a folder that `load_predictor` reads anywhere.

    It holds ``export.json`` (what it is), ``learner.safetensors`` (all that was learned), ``README.md`` (a model card),
    for LoRA and other peft adapters on a transformers model ``adapter_config.json`` and ``adapter_model.safetensors``
    as peft writes them, and with ``onnx`` ``model.onnx``. Pre-trained weights are named, not copied.

    Args:
        run: folder of the record.
        out: the folder; it may hold nothing but an earlier export.
        after_task: the learner as it was after this task (from 0); None = at the end.
        onnx: backbone and head in one ONNX file, too.
        overwrite: replace an earlier export.
        backbone, trust_remote_code: see `load_predictor`.

    Raises:
        RecordError: a record that is unfinished, damaged or without learner, or a folder that is taken or cannot be
            written. ModelError: as `load_predictor`, or a prediction that cannot be written as ONNX.
        MissingExtra: ``onnx`` without its packages.
    """
    run, out = Path(run).expanduser(), Path(out).expanduser()
    record = Record.read(run)
    predictor = load_predictor(
        run,
        after_task=after_task,
        backbone=backbone,
        device="cpu",
        precision="fp32",
        trust_remote_code=trust_remote_code,
    )
    _refuse_taken(out, overwrite)
    traced = onnx_file(predictor, _test_samples(record, predictor)) if onnx else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in OWN:  # export.json first: a folder half written is none
            (out / name).unlink(missing_ok=True)
        remove_parts(out)
        return _written(predictor, out, traced)
    except OSError as error:
        raise RecordError(f"the export cannot be written to {out}: {error.strerror or error}") from error


def _written(predictor: Predictor, out: Path, traced: tuple[bytes, dict[str, Any]] | None) -> Exported:
    tensors = {
        key: value.detach().cpu().contiguous().clone() for key, value in learned_tensors(predictor.method).items()
    }
    about = {"format": "pt", "method": type(predictor.method).__name__}
    write_whole(out / LEARNER, sealed(save(tensors, metadata=about)))
    names = [LEARNER]
    if traced is not None:
        write_whole(out / ONNX, traced[0])
        names.append(ONNX)
    adapted = peft_model(predictor.method)
    if adapted is not None:
        names += write_adapter(adapted, out, predictor.description)
    digests = {name: file_digest(out / name) for name in names}
    description = predictor.description.with_files(digests, None if traced is None else traced[1])
    card = model_card(description, out.name, adapter_for=None if adapted is None else base_class(adapted))
    write_whole(out / CARD, card.encode())
    write_whole(out / EXPORT, description.to_json())
    return Exported(out, {name: (out / name).stat().st_size for name in OWN if (out / name).exists()}, description)


def _refuse_taken(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RecordError(f"{out} is a file; give --out the name of a folder.")
    inside = {path.name for path in out.iterdir() if not path.name.endswith(".part")}
    foreign = sorted(inside - set(OWN))
    if foreign:
        raise RecordError(f"{out} holds other files ({', '.join(foreign[:3])}); choose an empty or a new folder.")
    if EXPORT in inside and not overwrite:
        raise RecordError(f"{out} holds an export already. Choose another folder, or replace it with --overwrite.")


def _test_samples(record: Record, predictor: Predictor) -> Samples | None:
    """Real samples to check an ONNX file on: some of each task's test samples; None where the data are gone."""
    try:
        stream = build_stream(build_source(dict(record.config["source"])), dict(record.config["stream"]), record.seed)
    except (TangentclError, KeyError):
        return None
    tests = [task.test.subset(range(min(CHECKED, len(task.test)))) for task in stream.tasks]
    learned = [test.with_transform(predictor.transform) for test in tests[: len(predictor.description.tasks)]]
    everything = Samples.concat(learned)
    step = max(len(everything) // CHECKED, 1)
    return everything.subset(range(0, len(everything), step)[:CHECKED])
