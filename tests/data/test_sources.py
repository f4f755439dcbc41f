from __future__ import annotations

import subprocess
import sys

import pytest

from tangentcl.data import SOURCES, load
from tangentcl.errors import ConfigError, DataError


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"digits"}))
def test_named_data_say_where_they_are_looked_for(name, monkeypatch, tmp_path):
    monkeypatch.delenv("TANGENTCL_DATA", raising=False)
    with pytest.raises(DataError, match="set the environment variable TANGENTCL_DATA"):
        load(name)
    monkeypatch.setenv("TANGENTCL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"No folder {name}"):
        load(name)
    (tmp_path / SOURCES[name][0]).mkdir()
    with pytest.raises(DataError):
        load(name)


def test_mistyped_names_get_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        load("digit")
    with pytest.raises(DataError, match="no file or folder is there"):
        load("some/where/else.csv")


def test_unknown_kinds_of_files_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="Cannot tell what"):
        load(path)


def test_settings_that_do_not_belong_are_refused():
    with pytest.raises(ConfigError, match="Hugging Face data sets only"):
        load("digits", revision="main")
    with pytest.raises(ConfigError, match="leave out text_column"):
        load("digits", text_column="text")


def test_importing_data_loads_no_optional_package():
    unwanted = ("torchvision", "datasets", "pyarrow", "transformers", "pandas", "sklearn")
    code = f"import sys, tangentcl.data; print([name for name in {unwanted} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
