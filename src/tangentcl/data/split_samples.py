"""The samples of a source's splits after limits per class, chosen shots and a held-out validation share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tangentcl.data.class_tasks import at_least
from tangentcl.data.samples import Samples
from tangentcl.data.table import Source, Table, choose_per_class
from tangentcl.errors import ConfigError


class SplitSamples:
    """Train, test and validation samples of a source, in source labels; validation is empty where there is none.

    Args:
        source: the data.
        validation: share of each class (in each domain) taken from the training samples after the limits.
        seed: of all draws.
        train_per_class, test_per_class: limits; None = all.
        shots: source label -> number of training samples, instead of ``train_per_class``.
        on_validation: the validation samples stand where the test samples do, which are left untouched.

    Raises:
        ConfigError: a share or limit outside its range, a share beside a validation split of the source, or none where
            validation samples are asked for.
    """

    def __init__(
        self,
        source: Source,
        validation: float,
        seed: int,
        train_per_class: int | None,
        test_per_class: int | None,
        shots: Mapping[int, int] | None = None,
        on_validation: bool = False,
    ) -> None:
        if not 0 <= validation < 1:
            raise ConfigError(f"Expected validation as a share between 0 and 1, got {validation}.")
        if validation and source.validation is not None:
            raise ConfigError(f"{source.name} brings a validation split of its own. Leave validation at 0 to use it.")
        for name, limit in (("train_per_class", train_per_class), ("test_per_class", test_per_class)):
            if limit is not None:
                at_least(name, limit, 1)
        train = _limited(source.train, train_per_class, seed, shots or {})
        self.test = Samples(source.test, _limited(source.test, test_per_class, seed, {}))
        if source.validation is not None:
            self.validation = Samples(source.validation)
        else:
            held = np.zeros(0, dtype=np.int64)
            if validation:
                strata = _strata(source.train)[train]
                held = choose_per_class(strata, seed, share=validation)
            self.validation = Samples(source.train, train[held])
            train = np.delete(train, held)
        self.train = Samples(source.train, train)
        if on_validation:
            if not len(self.validation):
                raise ConfigError(f"{source.name} has no validation samples to tune on. Give validation, as in 0.2.")
            self.test, self.validation = self.validation, self.validation.subset(np.zeros(0, dtype=np.int64))

    def of_classes(self, labels: np.ndarray, stream_label: np.ndarray) -> tuple[Samples, Samples, Samples]:
        """Train, test and validation samples of these source labels, with labels ``stream_label[source label]``."""
        train, test, held = (_relabelled(split, np.isin(split.labels, labels), stream_label) for split in self._all())
        return train, test, held

    def of_domain(self, domain: int) -> tuple[Samples, Samples, Samples]:
        """Train, test and validation samples of one domain, with the source's labels."""
        train, test, held = (
            split.subset(np.flatnonzero(_domains(split.table)[split.positions] == domain)) for split in self._all()
        )
        return train, test, held

    def _all(self) -> tuple[Samples, Samples, Samples]:
        return self.train, self.test, self.validation


def _relabelled(split: Samples, chosen: np.ndarray, stream_label: np.ndarray) -> Samples:
    return Samples(split.table, split.positions[chosen], stream_label[split.labels[chosen]])


def _limited(table: Table, limit: int | None, seed: int, shots: Mapping[int, int]) -> np.ndarray:
    """Positions of the samples that stay, int64 [n]."""
    everything = np.arange(len(table))
    positions = everything if limit is None else choose_per_class(_strata(table), seed, count=limit)
    if not shots:
        return positions
    parts = [positions[~np.isin(table.labels[positions], list(shots))]]
    for label, count in shots.items():
        members = everything[table.labels == label]
        parts.append(members[choose_per_class(table.labels[members], seed, count=count)])
    return np.sort(np.concatenate(parts))


def _domains(table: Table) -> np.ndarray:
    return np.zeros(len(table), dtype=np.int64) if table.domains is None else table.domains


def _strata(table: Table) -> np.ndarray:
    """Class and domain of each sample as one integer, int64 [n]."""
    return table.labels + (int(table.labels.max()) + 1) * _domains(table)
