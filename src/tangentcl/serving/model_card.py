"""The README of an export: a model card as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from typing import Any

from tangentcl.serving.description import Description

CARD = "README.md"
SHOWN = 10  # classes or tasks named one by one
METRICS = {
    "last_accuracy": "last accuracy: all test samples after the last task",
    "average_accuracy": "average accuracy: mean of the accuracies after each task",
    "ffm": "final forgetting: mean over tasks of the best accuracy minus the last",
    "backward_transfer": "backward transfer: mean change of a task's accuracy since it was learned",
}
SCENARIOS = {
    "class": "Class-incremental: every task brought new classes, and answers are among all of them.",
    "domain": "Domain-incremental: every task brought the same classes from another domain.",
    "task": "Task-incremental: accuracies are of answers among the classes of the sample's own task, `task=` below.",
    "few_shot": "Few-shot class-incremental: a large first task, then tasks of a few samples per class.",
}
PIPELINES = {"image": "image-classification", "text": "text-classification"}
EXAMPLES = {"image": '["photo.png"]', "text": '["a text"]', "array": "arrays"}
HOMES = {"hub", "folder"}  # sources of backbones whose names others know


def model_card(about: Description, folder: str, *, adapter_for: str | None) -> str:
    """The text of ``README.md``.

    Args:
        about: what was exported. folder: its name, for the example.
        adapter_for: class of the transformers model that the adapter beside it is for; None without an adapter.
    """
    parts = [
        _front_matter(about, adapter_for),
        f"# {about.label} on {about.data['name']}\n",
        _learned(about),
        _results(about),
        _usage(about, folder, adapter_for),
        _limits(about),
        _origin(about),
    ]
    return "\n".join(parts)


def _front_matter(about: Description, adapter_for: str | None) -> str:
    pretrained, method = about.pretrained, str(about.method["name"])
    lines: dict[str, Any] = {"library_name": "tangentcl"}
    if pretrained.get("source") in HOMES:
        lines["base_model"] = pretrained["name"]
    if about.modality in PIPELINES:
        lines["pipeline_tag"] = PIPELINES[about.modality]
    scenario = "few-shot" if about.scenario == "few_shot" else f"{about.scenario}-incremental"
    lines["tags"] = ["continual-learning", scenario, method, *(["peft", "lora"] if adapter_for else [])]
    lines["metrics"] = ["accuracy"]
    text = "".join(f"{key}:{_yaml(value)}\n" for key, value in lines.items())
    return f"---\n{text}---\n"


def _yaml(value: Any) -> str:
    """A text or a list of texts; JSON strings are YAML's."""
    if isinstance(value, list):
        return "".join(f"\n  - {json.dumps(item, ensure_ascii=False)}" for item in value)
    return " " + json.dumps(value, ensure_ascii=False)


def _learned(about: Description) -> str:
    tasks = about.tasks
    sizes = [task["n_train"] for task in tasks]
    samples = "" if None in sizes else f" from {sum(sizes)} training samples"
    whole = "" if len(tasks) == about.n_tasks else f" (of {about.n_tasks}; this is the learner as it was then)"
    keywords = ", ".join(f"{k}={v!r}" for k, v in about.method.items() if k not in ("name", "label"))
    method = f"`{about.method['name']}`" + (f" with `{keywords}`" if keywords else "")
    base = about.pretrained
    revision = f", revision {base['revision']}" if base.get("revision") and base.get("source") == "hub" else ""
    where = "come with tangentcl" if base.get("source") == "bundled" else "are not in this folder"
    n_tasks = _count(len(tasks), "task")
    lines = [
        "## What it is\n",
        f"{len(about.class_names)} classes, learned{samples} in {n_tasks}, one after another{whole}.",
        SCENARIOS[about.scenario],
        f"Method: {method}, of tangentcl {about.versions.get('tangentcl')}, seed {about.seed}.",
        f"It stands on the pre-trained weights of `{base['name']}`{revision}, which {where} "
        f"(SHA-256 over their tensors {str(base['sha256'])[:12]}…, checked when it is loaded).\n",
        "| task | classes |",
        "| --- | --- |",
    ]
    for task in tasks[:SHOWN]:
        lines.append(f"| {_cell(task['name'])} | {_names([about.class_names[c] for c in task['classes']])} |")
    if len(tasks) > SHOWN:
        lines.append(f"| … | {len(tasks) - SHOWN} more tasks, see `export.json` |")
    return "\n".join(lines) + "\n"


def _results(about: Description) -> str:
    """Accuracies with their names, and what was lost."""
    lines = ["## Results on test samples\n", "| metric | % |", "| --- | --- |"]
    lines += [f"| {meaning} | {_percent(about.metrics[key])} |" for key, meaning in METRICS.items() if _has(about, key)]
    for task, accuracy in list(zip(about.tasks, about.accuracy))[:SHOWN]:
        lines.append(f"| accuracy on task {_cell(task['name'])}, at the end | {_percent(accuracy)} |")
    if len(about.tasks) > SHOWN:
        lines.append(f"| … | {len(about.tasks) - SHOWN} more tasks, see `export.json` |")
    said = [_weakest(about), _forgotten(about)]
    return "\n".join(lines) + "\n\n" + "".join(f"{sentence}\n" for sentence in said if sentence)


def _weakest(about: Description) -> str:
    known = [(a, name) for a, name in zip(about.class_accuracy or [], about.class_names) if a is not None]
    if not known:
        return ""
    worst = sorted(known, key=lambda pair: pair[0])[:5]
    return f"Most often wrong: {', '.join(f'{_cell(name)} ({_percent(a)} % right)' for a, name in worst)}."


def _forgotten(about: Description) -> str:
    lost = about.metrics.get("forgetting_per_task") or []
    known = [(f, str(task["name"])) for f, task in zip(lost, about.tasks) if f is not None]
    if not known:
        return ""
    most, name = max(known)
    if most <= 0:
        return "No earlier task lost accuracy."
    return f"Most forgotten: task {_cell(name)}, {_percent(most)} points below its best."


def _usage(about: Description, folder: str, adapter_for: str | None) -> str:
    task = ", task=0" if about.scenario == "task" else ""
    example = EXAMPLES[about.modality]
    text = (
        "## How to use it\n\n"
        "```python\n"
        "from tangentcl import load_predictor\n\n"
        f'predictor = load_predictor("{folder}")\n'
        f"predictor.predict({example}{task})  # names of classes\n"
        f"predictor.scores({example}{task})  # [n, {len(about.class_names)}], in the order of predictor.class_names\n"
        "```\n\n"
        f"or `tangentcl predict {folder} --input FILE`. Where the pre-trained weights lie elsewhere: `backbone=...`, "
        "`--backbone`.\n"
    )
    if about.onnx is not None:
        text += (
            f"\n`model.onnx` is backbone and head in one, without the transform; on {about.onnx['checked']} "
            f"{about.onnx['on']} its scores differ by at most {about.onnx['largest_difference']:.1g}.\n"
        )
    if adapter_for is None:
        return text
    return text + (
        "\nThe adapter alone, which gives the features and no classes, loads with peft:\n\n"
        "```python\n"
        "from peft import PeftModel\nfrom transformers import AutoModel\n\n"
        f'model = PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), "{folder}")  # a {adapter_for}\n'
        "```\n"
    )


def _limits(about: Description) -> str:
    lines = [
        "## Limits\n",
        f"- It answers with one of its {len(about.class_names)} classes whatever it is given: nothing says that an "
        "input is none of them.",
        "- Scores are not calibrated, and their softmax is a probability only after training by cross-entropy.",
        "- Accuracies are of one run with one order of tasks and one seed, on test samples like the training samples.",
    ]
    return "\n".join(lines) + "\n"


def _origin(about: Description) -> str:
    data = about.data
    lines = ["## Data\n", f"Trained on `{data['name']}`."]
    lines.append(
        f"Licence of the data: {data['licence']}." if data.get("licence") else "The record names no licence of them."
    )
    if data.get("citation"):
        lines.append(f"Cite: {data['citation']}")
    return "\n".join(lines) + "\n"


def _has(about: Description, key: str) -> bool:
    return isinstance(about.metrics.get(key), float)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _names(names: list[str]) -> str:
    more = f", … ({len(names)})" if len(names) > SHOWN else ""
    return ", ".join(_cell(name) for name in names[:SHOWN]) + more


def _cell(text: Any) -> str:
    """A name within a line or a table of Markdown."""
    return str(text).replace("|", "\\|").replace("\n", " ")
