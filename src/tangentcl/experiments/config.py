"""Experiment files: each TOML table becomes the keywords of one constructor, and a mistyped key is answered."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangentcl.documents import Malformed, OutOfRange, parse_toml
from tangentcl.errors import ConfigError, nearest
from tangentcl.records.published import Published, published_from

Table = dict[str, Any]

TABLES = ("source", "stream", "backbone", "transform", "plan", "forecast", "theory", "method")
TOP = ("name", "seeds", "save", "published", "tracker", *TABLES)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


@dataclass(frozen=True)
class MethodEntry:
    """One ``[[method]]`` of an experiment: what to call it, the method's keywords, and its changes to the plan."""

    label: str
    name: str
    keywords: Table
    plan: Table

    @property
    def slug(self) -> str:
        """The label as a folder name."""
        return slug(self.label)


@dataclass(frozen=True)
class Experiment:
    """Methods on one stream, for several seeds.

    Attributes:
        name: folder of the records below the output folder.
        seeds: one run per method and seed.
        source, stream, backbone, transform, plan: keywords of `tangentcl.data.load`, of the stream's function in
            `tangentcl.data.STREAMS` (with ``kind``), of `tangentcl.nn.backbone`, of the training transform, and of
            `tangentcl.training.TrainingPlan`.
        methods: what is compared.
        save: whether each record keeps the trained learner; "tasks" keeps it as it was after every task, too.
        forecast: keywords of `tangentcl.training.ForecastOptions`, or None to forecast nothing.
        theory: keywords of `tangentcl.training.TheoryOptions`, or None for no theory report.
        published: what others reached on this stream. It goes into the record, and is no setting: it may change.
        trackers: who looks on: keywords of classes in `tangentcl.experiments.trackers`, and ``name``. No setting.
    """

    name: str
    seeds: tuple[int, ...]
    source: Table
    stream: Table
    backbone: Table
    plan: Table
    methods: tuple[MethodEntry, ...]
    transform: Table = field(default_factory=dict)
    save: bool | str = True
    forecast: Table | None = None
    theory: Table | None = None
    published: tuple[Published, ...] = ()
    trackers: tuple[Table, ...] = ()

    def resolved(self, entry: MethodEntry, seed: int) -> Table:
        """All settings of one run, as they are written into its record."""
        settings = {
            "name": self.name,
            "label": entry.label,
            "seed": seed,
            "save": self.save,
            "source": copy.deepcopy(self.source),
            "stream": copy.deepcopy(self.stream),
            "backbone": copy.deepcopy(self.backbone),
            "transform": copy.deepcopy(self.transform),
            "plan": {**self.plan, **entry.plan},
            "method": {"name": entry.name, **copy.deepcopy(entry.keywords)},
        }
        asked = {"forecast": self.forecast, "theory": self.theory}
        return {**settings, **{key: copy.deepcopy(table) for key, table in asked.items() if table is not None}}


def load_experiment(
    path: str | Path, *, settings: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> Experiment:
    """Read an experiment file.

    Args:
        path: a TOML file; ``$NAME`` in its strings is replaced by the environment variable.
        settings: changes like ``"plan.epochs=5"``; values are TOML, and a value that is no TOML is taken as a string.
            ``method.rank=4`` changes every method, ``method.LABEL.rank=4`` one of them.
        seeds: instead of the file's.

    Raises:
        ConfigError: missing file, broken TOML, unknown table or key, value of a wrong type.
    """
    path = Path(path)
    document = _document(path)
    for setting in settings:
        try:
            apply_setting(document, setting)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    if seeds is not None:
        document["seeds"] = list(seeds)
    document.setdefault("name", path.stem)
    return experiment_from(document, where=str(path))


def load_published(path: str | Path) -> tuple[str, tuple[Published, ...]]:
    """Name of an experiment file and its ``[[published]]``, whatever else is in it.

    Raises:
        ConfigError: missing file, broken TOML, or tables that cannot be used.
    """
    path = Path(path)
    document = _document(path)
    return slug(str(document.get("name", path.stem))), _published(document, str(path))


def _document(path: Path) -> Table:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        around = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise ConfigError(f"there is no experiment file {path}.{nearest(path.name, around)}") from error
    except OSError as error:
        raise ConfigError(f"experiment file {path} cannot be read: {error.strerror or error}") from error
    try:
        return parse_toml(content)
    except Malformed as error:
        raise ConfigError(f"experiment file {path} cannot be used: {error}") from error


def toml_value(text: str) -> Any:
    """A value as an experiment file has it; what is no TOML, or more than one value, is text.

    Raises:
        ConfigError: a number that is not finite or needs more than 64 bits.

    >>> toml_value("1e-3"), toml_value("sgd")
    (0.001, 'sgd')
    """
    try:
        table = parse_toml(f"value = {text}")
    except OutOfRange as error:
        raise ConfigError(f"{text} cannot be used: the {error}") from error
    except Malformed:
        return text
    return table["value"] if len(table) == 1 else text


def apply_setting(document: Table, setting: str) -> None:
    """Change ``document`` in place by one ``table.key=value``.

    >>> document = {"plan": {"epochs": 1}}
    >>> apply_setting(document, "plan.epochs=5"); document
    {'plan': {'epochs': 5}}
    """
    key, equals, text = setting.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set expects table.key=value, for example plan.epochs=5, got {setting!r}")
    value = toml_value(text)
    if parts[0] not in TOP:
        raise ConfigError(f"--set {setting}: there is no table {parts[0]!r}.{nearest(parts[0], TOP)}")
    if parts[0] == "method":
        targets = _method_tables(document, f"--set {setting}")
        if len(parts) > 2 and parts[1] != "plan":
            labels = {slug(_label(table)): table for table in targets}
            if slug(parts[1]) not in labels:
                raise ConfigError(f"--set {setting}: there is no method {parts[1]!r}.{nearest(parts[1], labels)}")
            targets = [labels[slug(parts[1])]]
            parts = ["method", *parts[2:]]
    elif parts[0] == "tracker" and len(parts) > 1:
        targets = document["tracker"] = _tracker_tables(document) or [{}]
    else:
        targets = [document.setdefault(parts[0], {})] if len(parts) > 1 else [document]
        if len(parts) == 1:
            document[parts[0]] = value
            return
    if len(parts) == 1:
        raise ConfigError(f"--set {setting}: name a key of the table, as in {parts[0]}.KEY=value")
    for table in targets:
        for part in parts[1:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else table
        if not isinstance(table, dict):
            raise ConfigError(f"--set {setting}: {'.'.join(parts[:-1])} is a value, not a table")
        table[parts[-1]] = value


def experiment_from(parsed: Mapping[str, Any], *, where: str = "experiment") -> Experiment:
    """Check a parsed document and make an `Experiment` of it; ``where`` begins every error."""
    document: Table = _expanded(copy.deepcopy(dict(parsed)), where)
    for key in document:
        if key not in TOP:
            raise ConfigError(f"{where}: unknown key or table {key!r}.{nearest(key, TOP)}")
    for name in ("source", "stream", "backbone", "transform", "plan"):
        if not isinstance(document.setdefault(name, {}), dict):
            raise ConfigError(f"{where}: {name} must be a table, [{name}], got {document[name]!r}")
    name, seeds, save = document.get("name", "experiment"), document.get("seeds", [0]), document.get("save", True)
    if not isinstance(name, str) or not slug(name):
        raise ConfigError(f"{where}: name must be a string with a letter or digit, got {name!r}")
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        seeds = [seeds]
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int or s < 0 for s in seeds):
        raise ConfigError(f"{where}: seeds must be whole numbers of at least 0, as in [0, 1, 2], got {seeds!r}")
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"{where}: seeds must differ, got {seeds}")
    if not isinstance(save, bool) and save != "tasks":
        raise ConfigError(f'{where}: save must be true, false or "tasks" (after every task), got {save!r}')
    entries = [_entry(table, where) for table in _method_tables(document, where)]
    if not entries:
        raise ConfigError(f"{where}: no method to run; add a [[method]] table with a name")
    slugs = [entry.slug for entry in entries]
    for entry in entries:
        if slugs.count(entry.slug) > 1:
            raise ConfigError(f"{where}: two methods are labelled {entry.label!r}; give each a label of its own")
    document["source"].setdefault("name", "digits")
    document["stream"].setdefault("kind", "class_incremental")
    document["backbone"].setdefault("name", "bundled")
    return Experiment(
        name=slug(name),
        seeds=tuple(seeds),
        methods=tuple(entries),
        save=save,
        forecast=_switched("forecast", document.get("forecast", False), where),
        theory=_switched("theory", document.get("theory", False), where),
        published=_published(document, where),
        trackers=_trackers(document, where),
        **{key: document[key] for key in ("source", "stream", "backbone", "transform", "plan")},
    )


def slug(text: str) -> str:
    """Letters, digits, dots and dashes of ``text``, for use as a folder name.

    >>> slug("LoRA, all logits (r=8)")
    'lora-all-logits-r-8'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def _published(document: Mapping[str, Any], where: str) -> tuple[Published, ...]:
    tables = document.get("published", [])
    if not isinstance(tables, list):
        raise ConfigError(f"{where}: published must be tables, [[published]], got {tables!r}")
    return tuple(published_from(table, where) for table in tables)


def _tracker_tables(document: Mapping[str, Any]) -> list[Table]:
    """The tables of ``tracker``, where a name stands for a table that holds nothing else, and false for none."""
    given = document.get("tracker", False)
    given = [] if given is False else given if isinstance(given, list) else [given]
    tables = [{"name": item} if isinstance(item, str) else item for item in given]
    if any(not isinstance(table, dict) for table in tables):
        raise ConfigError(f"tracker must be a name, a table, [tracker] or [[tracker]], or false, got {given!r}")
    return tables


def _trackers(document: Mapping[str, Any], where: str) -> tuple[Table, ...]:
    tables = _tracker_tables(document)
    for table in tables:
        if not isinstance(table.get("name"), str):
            name = table.get("name")
            raise ConfigError(f'{where}: every [[tracker]] needs a name, as in name = "tensorboard", got {name!r}')
    return tuple(tables)


def _switched(name: str, given: Any, where: str) -> Table | None:
    """A table that is off unless asked for; true stands for an empty one, false for none."""
    if isinstance(given, bool):
        return {} if given else None
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: {name} must be a table, [{name}], or true or false, got {given!r}")
    return given


def _entry(table: Table, where: str) -> MethodEntry:
    table = dict(table)
    name, plan = table.pop("name", None), table.pop("plan", {})
    label = table.pop("label", name)
    if not isinstance(name, str):
        raise ConfigError(f'{where}: every [[method]] needs a name, as in name = "finetune", got {name!r}')
    if not isinstance(label, str) or not slug(label):
        raise ConfigError(f"{where}: the label of method {name!r} must hold a letter or digit, got {label!r}")
    if not isinstance(plan, dict):
        raise ConfigError(f"{where}: plan of method {name!r} must be a table, [method.plan], got {plan!r}")
    return MethodEntry(label=label, name=name, keywords=table, plan=plan)


def _label(table: Table) -> str:
    return str(table.get("label", table.get("name", "")))


def _method_tables(document: Mapping[str, Any], where: str) -> list[Table]:
    tables = document.get("method", [])
    tables = [tables] if isinstance(tables, dict) else tables
    if not isinstance(tables, list) or any(not isinstance(table, dict) for table in tables):
        raise ConfigError(f"{where}: method must be a table, [method] or [[method]], got {tables!r}")
    return tables


def _expanded(value: Any, where: str) -> Any:
    """Environment variables in strings; a name that is not set is an error, not an empty string."""
    if isinstance(value, dict):
        return {key: _expanded(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _environment(found[1] or found[2], value, where), value)
    return value


def _environment(name: str, value: str, where: str) -> str:
    if name not in os.environ:
        raise ConfigError(f"{where}: {value!r} needs the environment variable {name}, which is not set")
    return os.environ[name]
