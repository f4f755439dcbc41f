"""A cell: one method, one strength, one seed, as an experiment of its own whose record says whether it is done."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.protect.methods import RATE, Entry
from benchmarks.protect.settings import Setting
from tangentcl.documents import parse_toml
from tangentcl.errors import RecordError
from tangentcl.experiments.config import Table, experiment_from
from tangentcl.experiments.run import difference
from tangentcl.records import Record
from tangentcl.records.files import plain


@dataclass(frozen=True)
class Cell:
    """What one run needs.

    Attributes:
        setting, entry: where and what. value: of the entry's strength; None where it has none.
        seed: of the run. tuning: whether it runs on the first tasks and their validation samples.
        out: folder of the benchmark.
    """

    setting: Setting
    entry: Entry
    value: float | None
    seed: int
    tuning: bool
    out: Path

    @property
    def label(self) -> str:
        """Of the record: with the value where values are compared."""
        tried = f" {self.entry.strength} {self.value:.3g}" if self.tuning else ""
        return f"{self.entry.label}{tried}"

    @property
    def title(self) -> str:
        """For a line of progress."""
        return f"{self.setting.name}: {self.label}, {'tuning' if self.tuning else f'seed {self.seed}'}"

    @property
    def document(self) -> Table:
        """Its experiment file."""
        document = parse_toml(self.setting.file.read_bytes())
        method = copy.deepcopy(self.entry.settings(self.setting) or {})
        if self.entry.strength == RATE and self.value is not None:
            for rate in {"lr", "head_lr"} & set(document["plan"]):
                document["plan"][rate] = float(f"{document['plan'][rate] * self.value:.3g}")
        elif self.entry.strength is not None:
            method[self.entry.strength] = self.value
        if self.tuning:
            document["stream"]["tuning_tasks"] = self.setting.tuning_tasks
        document["name"] = f"{self.setting.name} {'tuning' if self.tuning else 'test'}"
        return {**document, "seeds": [self.seed], "save": False, "method": [{**method, "label": self.label}]}

    @property
    def runs(self) -> Path:
        """Folder of all records."""
        return self.out / "runs"

    @property
    def folder(self) -> Path:
        """Of its record."""
        made = experiment_from(self.document)
        return self.runs / made.name / made.methods[0].slug / f"seed-{self.seed}"

    @property
    def reason(self) -> str | None:
        """Why its record is not finished; None where it is, or where there is none."""
        if not (self.folder / "status.json").exists():
            return None
        try:
            status = Record.read(self.folder).status
        except RecordError as error:
            return str(error)
        return None if status.status == "done" else f"{status.status}: {status.reason or 'no reason given'}"

    @property
    def seconds(self) -> Path:
        """File of its processor time, a line per task; beside the record, which holds wall time."""
        return self.folder.parent / f"cpu-{self.seed}.jsonl"

    def record(self) -> Record | None:
        """The finished record, or None.

        Raises:
            RecordError: it is damaged, or was made with other settings.
        """
        if not (self.folder / "status.json").exists():
            return None
        record = Record.read(self.folder)
        if record.status.status != "done":
            return None
        made = experiment_from(self.document)
        wanted = plain(made.resolved(made.methods[0], self.seed))
        # What the file leaves out was filled in with defaults and is no difference.
        known = {table: _restricted(record.config.get(table), value) for table, value in wanted.items()}
        if changes := difference(known, wanted):
            raise RecordError(f"{self.folder} was made with other settings: {'; '.join(changes)}. Remove it.")
        return record


def _restricted(found: Any, wanted: Any) -> Any:
    return {key: found.get(key) for key in wanted} if isinstance(found, dict) and isinstance(wanted, dict) else found
