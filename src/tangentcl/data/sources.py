"""load: a data set by name, path or hub name."""

from __future__ import annotations

from pathlib import Path

from tangentcl.data.arrays import from_arrays
from tangentcl.data.columns import Columns
from tangentcl.data.digits import digits
from tangentcl.data.hub import hub
from tangentcl.data.image_folder import image_folder
from tangentcl.data.parquet import parquet
from tangentcl.data.preset import PRESETS
from tangentcl.data.preset_source import preset_source
from tangentcl.data.table import Source
from tangentcl.data.text_files import TEXT_SUFFIXES, text_files
from tangentcl.errors import ConfigError, DataError, nearest

__all__ = ["SOURCES", "from_arrays", "load"]

# Data sets known by name -> folders under $TANGENTCL_DATA that may hold them; none = inside the package.
SOURCES: dict[str, tuple[str, ...]] = {name: preset.folders for name, preset in PRESETS.items()}


def load(
    name: str | Path,
    *,
    text_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    domain_column: str | None = None,
    group_column: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    test_share: float = 0.25,
    test_seed: int = 0,
) -> Source:
    """Load a data set.

    Args:
        name: a preset, such as "digits" (embedded) or "cifar100" (under the folder that the environment variable
            TANGENTCL_DATA names; ``tangentcl list data`` prints them all); "hf:NAME" or "hf:PATH" for Hugging Face
            datasets; or a path: a folder of images, a zip file of one, a Parquet, CSV, TSV, JSON or JSONL file, or a
            folder with train and test files of one kind.
        text_column, image_column, label_column: columns of a table; None looks for the usual names.
        domain_column: column with the domain of each sample, for domain-incremental streams.
        group_column: column with the group of each sample's class, for tasks by group.
        config, revision: configuration and commit of a Hugging Face data set.
        test_share, test_seed: what is held out, class by class, if there is no test split.

    Raises:
        DataError: data that are missing or damaged, or a preset with other classes than it should have; the message
            names the file, and for a preset where the data come from and their licence.
        ConfigError: an unknown name or column, or a setting that this kind of data does not have.
        MissingExtra: Parquet and Hugging Face data sets need the extra "data".

    >>> load("digits").describe()["n_test"]
    450
    """
    columns = Columns(text_column, image_column, label_column, domain_column, group_column)
    text = str(name)
    if text.startswith("hf:"):
        return hub(text[3:], columns, config=config, revision=revision, test_share=test_share, test_seed=test_seed)
    for setting, value in (("config", config), ("revision", revision)):
        if value is not None:
            raise ConfigError(
                f"{setting}={value!r} is for Hugging Face data sets only: load('hf:{text}', {setting}=...)."
            )
    if text in SOURCES:
        refuse_columns(columns, text)
        if text == "digits":
            return digits(test_share=test_share, test_seed=test_seed)
        return preset_source(PRESETS[text], test_share=test_share, test_seed=test_seed)
    return _from_path(Path(name).expanduser(), columns, test_share, test_seed)


def _from_path(path: Path, columns: Columns, test_share: float, test_seed: int) -> Source:
    if not path.exists():
        hint = "" if len(path.parts) > 1 or path.suffix else nearest(str(path), SOURCES)
        raise DataError(f"No data set is named {str(path)!r} and no file or folder is there.{hint}")
    kind = kind_of(path)
    if kind == "hub":
        return hub(str(path), columns, test_share=test_share, test_seed=test_seed)
    if kind == "parquet":
        return parquet(path, columns, test_share=test_share, test_seed=test_seed)
    if kind == "text":
        return text_files(path, columns, test_share=test_share, test_seed=test_seed)
    refuse_columns(columns, str(path))
    return image_folder(path, test_share=test_share, test_seed=test_seed)


def kind_of(path: Path) -> str:
    """What lies at an existing path: "hub" (a saved Hugging Face data set), "parquet", "text" or "image".

    Raises:
        DataError: a file with an ending that is not read.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return "hub"
    suffixes = {path.suffix.lower()} if path.is_file() else {file.suffix.lower() for file in path.iterdir()}
    if ".parquet" in suffixes or (path.is_dir() and any((path / "data").glob("*.parquet"))):
        return "parquet"
    if suffixes & set(TEXT_SUFFIXES) and not (path.is_dir() and any(file.is_dir() for file in path.iterdir())):
        return "text"
    if path.is_dir() or path.suffix.lower() == ".zip":
        return "image"
    raise DataError(
        f"Cannot tell what {path} is. Expected a folder of images, a .zip of one, or a file with one of the endings "
        f".parquet, {', '.join(TEXT_SUFFIXES)}."
    )


def refuse_columns(columns: Columns, name: str) -> None:
    """Raise ConfigError where columns were named for data that have none."""
    if columns.given():
        raise ConfigError(f"{name} has no columns to choose; leave out {', '.join(columns.given())}.")
