"""Experiment files: what is read from them, and how each mistake is answered."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from tangentcl.errors import ConfigError
from tangentcl.experiments import load_experiment
from tangentcl.experiments.call import call, fits
from tangentcl.experiments.config import apply_setting, experiment_from, slug

TEXT = """
seeds = [0, 1]
[stream]
n_tasks = 5
[plan]
epochs = 2
[[method]]
name = "finetune"
label = "LoRA, r=8"
rank = 8
[[method]]
name = "ncm"
plan = { epochs = 1 }
"""
METHOD: dict[str, Any] = {"method": [{"name": "ncm"}]}


def _file(folder: Path, text: str | bytes = TEXT, name: str = "mine.toml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_file_becomes_an_experiment_with_defaults(tmp_path: Path) -> None:
    experiment = load_experiment(_file(tmp_path))
    assert (experiment.name, experiment.seeds, experiment.save) == ("mine", (0, 1), True)
    assert experiment.source == {"name": "digits"}
    assert experiment.stream == {"n_tasks": 5, "kind": "class_incremental"}
    assert [(m.label, m.slug, m.keywords, m.plan) for m in experiment.methods] == [
        ("LoRA, r=8", "lora-r-8", {"rank": 8}, {}),
        ("ncm", "ncm", {}, {"epochs": 1}),
    ]
    resolved = experiment.resolved(experiment.methods[1], 1)
    assert (resolved["plan"], resolved["method"], resolved["seed"]) == ({"epochs": 1}, {"name": "ncm"}, 1)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()
    assert len(load_experiment(_file(tmp_path, text)).methods) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = [", r"mine.toml cannot be used: it is not valid TOML: .*"),
        (b"\xff\xfe\x00", r"mine.toml cannot be used: it is not UTF-8 text"),
        ("", r"no method to run; add a \[\[method\]\]"),
        ("a = " + "[" * 100_000, r"mine.toml cannot be used: it is nested too deeply"),
        ("seeds = " + "9" * 5000, r"mine.toml cannot be used: it is not valid TOML: Exceeds the limit"),
        ("seeds = " + "9" * 20, r"mine.toml cannot be used: seeds must be a number of at most 64 bits"),
        ("[plan]\nlr = nan", r"mine.toml cannot be used: plan.lr must be a finite number, got nan"),
        ("[pln]\n", r"unknown key or table 'pln'. Did you mean 'plan'\? Known: backbone, "),
        ("[[source]]\nname = 'digits'", r"source must be a table, \[source\], got \[\{'name': 'digits'\}\]"),
        ("plan = 3", r"plan must be a table"),
        ("method = 3", r"method must be a table, \[method\] or \[\[method\]\], got 3"),
        ("[[method]]\nrank = 3", r"every \[\[method\]\] needs a name"),
        ("[[method]]\nname = 'ncm'\nlabel = '-'", r"label of method 'ncm' must hold a letter or digit, got '-'"),
        ("[[method]]\nname = 'ncm'\nplan = 3", r"plan of method 'ncm' must be a table, \[method.plan\], got 3"),
        ("[[method]]\nname = 'ncm'\n[[method]]\nname = 'ncm'", r"two methods are labelled 'ncm'; give each a label"),
        (
            "[[method]]\nname = 'ncm'\nlabel = 'A b'\n[[method]]\nname = 'ncm'\nlabel = 'a-B'",
            "two methods are labelled 'A b'",
        ),
        ("save = 1\n[[method]]\nname = 'ncm'", r'save must be true, false or "tasks" \(after every task\), got 1'),
        ("name = '...'\n[[method]]\nname = 'ncm'", r"name must be a string with a letter or digit"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(_file(tmp_path, text))


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    _file(tmp_path)
    with pytest.raises(ConfigError, match=r"no experiment file .*mina.toml. Did you mean 'mine.toml'\?"):
        load_experiment(tmp_path / "mina.toml")
    with pytest.raises(ConfigError, match="no experiment file"):
        load_experiment(tmp_path / "nowhere" / "mine.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("seeds", [[], [-1], [0.5], [True], "0", [1, 1], None])
def test_seeds_that_cannot_be_used(seeds: Any) -> None:
    with pytest.raises(ConfigError, match="seeds must"):
        experiment_from({**METHOD, "seeds": seeds})


def test_one_seed_needs_no_list_and_the_command_line_wins(tmp_path: Path) -> None:
    assert experiment_from({**METHOD, "seeds": 4}).seeds == (4,)
    assert load_experiment(_file(tmp_path), seeds=[7]).seeds == (7,)


@pytest.mark.parametrize(
    ("table", "settings", "expected"),
    [
        (None, [], None),
        ("[forecast]", [], {}),
        ("[forecast]\nsamples = 500", [], {"samples": 500}),
        (None, ["forecast.samples=500"], {"samples": 500}),
        ("[forecast]\nsamples = 500", ["forecast.form=ntk"], {"samples": 500, "form": "ntk"}),
        ("[forecast]", ["forecast=false"], None),
        (None, ["forecast=true"], {}),
    ],
)
def test_forecasts_are_off_until_asked_for(
    tmp_path: Path, table: str | None, settings: list[str], expected: dict[str, Any] | None
) -> None:
    path = tmp_path / "e.toml"
    path.write_text(f"{table or ''}\n[[method]]\nname = 'ncm'\n")
    experiment = load_experiment(path, settings=settings)
    assert experiment.forecast == expected
    resolved = experiment.resolved(experiment.methods[0], 0)
    assert resolved.get("forecast") == expected
    assert ("forecast" in resolved) == (expected is not None)


def test_theory_is_off_until_asked_for() -> None:
    assert experiment_from(METHOD).theory is None
    assert "theory" not in experiment_from(METHOD).resolved(experiment_from(METHOD).methods[0], 0)
    asked = experiment_from({**METHOD, "theory": {"probe": 10}})
    assert asked.resolved(asked.methods[0], 0)["theory"] == {"probe": 10}
    with pytest.raises(ConfigError, match=r"theory must be a table, \[theory\], or true or false, got 'yes'"):
        experiment_from({**METHOD, "theory": "yes"})


def test_forecast_is_a_table() -> None:
    with pytest.raises(ConfigError, match=r"forecast must be a table, \[forecast\], or true or false, got 3"):
        experiment_from({**METHOD, "forecast": 3})


def test_environment_variables_are_replaced_in_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data/$5")
    document = {**METHOD, "source": {"name": "$WHERE/a", "columns": ["${WHERE}", 3]}, "backbone": {"name": "cost $5"}}
    experiment = experiment_from(document)
    assert experiment.source == {"name": "/data/$5/a", "columns": ["/data/$5", 3]}
    assert experiment.backbone["name"] == "cost $5"
    with pytest.raises(ConfigError, match="'\\$NOWHERE_AT_ALL/x' needs the environment variable NOWHERE_AT_ALL"):
        experiment_from({**METHOD, "source": {"name": "$NOWHERE_AT_ALL/x"}})


DOCUMENT: dict[str, Any] = {
    "plan": {"epochs": 1},
    "method": [{"name": "finetune", "label": "LoRA, r=8"}, {"name": "ncm"}],
}


@pytest.mark.parametrize(
    ("setting", "where", "value"),
    [
        ("plan.epochs=5", ("plan", "epochs"), 5),
        ("plan.lr = 1e-3", ("plan", "lr"), 1e-3),
        ("plan.schedule=cosine", ("plan", "schedule"), "cosine"),
        ('plan.schedule="cosine"', ("plan", "schedule"), "cosine"),
        ("stream.n_tasks=4", ("stream", "n_tasks"), 4),
        ("source.name=/a=b.csv", ("source", "name"), "/a=b.csv"),
        ("transform.scale=[0.6, 1.0]", ("transform", "scale"), [0.6, 1.0]),
        ("seeds=[3]", ("seeds",), [3]),
        ("stream={kind = 'few_shot'}", ("stream",), {"kind": "few_shot"}),
        ("method.ncm.metric=euclidean", ("method", 1, "metric"), "euclidean"),
        ("method.lora-r-8.rank=4", ("method", 0, "rank"), 4),
        ("method.LoRA, r.rank=4", None, None),
        ("method.ncm.plan.epochs=3", ("method", 1, "plan", "epochs"), 3),
        ("method.rank=2", ("method", 0, "rank"), 2),
        ("method.rank=2", ("method", 1, "rank"), 2),
        ("method.plan.epochs=9", ("method", 1, "plan", "epochs"), 9),
    ],
)
def test_settings_change_one_value(setting: str, where: tuple[Any, ...] | None, value: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    if where is None:
        with pytest.raises(ConfigError, match="there is no method"):
            apply_setting(document, setting)
        return
    apply_setting(document, setting)
    found: Any = document
    for key in where:
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("plan.epochs", "--set expects table.key=value, for example plan.epochs=5, got 'plan.epochs'"),
        ("=3", "--set expects"),
        ("plan..lr=3", "--set expects"),
        ("plam.epochs=1", r"there is no table 'plam'. Did you mean 'plan'\?"),
        ("method.nmc.metric=cosine", r"there is no method 'nmc'. Did you mean 'ncm'\?"),
        ("method=3", "name a key of the table, as in method.KEY=value"),
        ("plan.epochs.a.b=3", "plan.epochs.a is a value, not a table"),
    ],
)
def test_a_mistyped_setting_is_answered(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_setting(copy.deepcopy(DOCUMENT), setting)


def _takes(
    given: object,
    *,
    kind: Literal["sgd", "adamw"],
    n: int | None = None,
    scale: tuple[float, float] = (0.1, 1.0),
    names: Sequence[str] = (),
    on: bool = True,
    file: str | Path | None = None,
    anything: object = None,
    groups: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    return {"kind": kind, "n": n, "scale": scale, "names": names, "on": on, "file": file, "groups": groups}


def test_a_table_becomes_keywords() -> None:
    table = {"kind": "sgd", "n": 2, "scale": [1, 0.5], "names": ["a"], "on": False, "file": "x", "groups": {"a": 1}}
    assert call(_takes, table, table="t", given=(None,)) == table
    assert call(_takes, {"kind": "sgd", "anything": object()}, table="t", given=(None,))["n"] is None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, r"\[t\] lacks 'kind', which _takes needs"),
        ({"knd": "sgd"}, r"\[t\] does not know 'knd'. Did you mean 'kind'\? Known: .*label"),
        ({"kind": "sdg"}, r"\[t\] kind must be one of 'sgd', 'adamw', got 'sdg'. Did you mean 'sgd'\?"),
        ({"kind": ["sgd"]}, "kind must be one of"),
        ({"n": "3"}, "n must be a whole number or left out, got '3'"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"scale": 3}, "scale must be a list of 2 numbers, got 3"),
        ({"scale": [0.5]}, "scale must be a list of 2 numbers"),
        ({"scale": [0.5, "1"]}, "scale must be a list of 2 numbers"),
        ({"names": "ab"}, "names must be a list of texts, got 'ab'"),
        ({"on": 1}, "on must be true or false, got 1"),
        ({"file": 3}, "file must be text or left out, got 3"),
        ({"groups": 3}, "groups must be a table or left out, got 3"),
    ],
)
def test_wrong_keys_and_types_are_refused(keywords: dict[str, Any], message: str) -> None:
    complete = keywords if not keywords or "knd" in keywords else {"kind": "sgd", **keywords}
    with pytest.raises(ConfigError, match=message):
        call(_takes, complete, table="t", given=(None,), aliases=("label",))


def test_hints_that_only_a_type_checker_knows_are_not_checked() -> None:
    def late(*, size: Nowhere = 3) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return size

    assert call(late, {"size": "x"}, table="t") == "x"
    with pytest.raises(ConfigError, match="Did you mean 'size'"):
        call(late, {"siz": 1}, table="t")


def test_fits_leaves_unknown_types_to_the_function() -> None:
    assert fits(3, Path) is False
    assert fits("x", ConfigError)
    assert fits([1, 2, 3], tuple[int, ...])
    assert not fits([1, "2"], tuple[int, ...])


def test_slugs_are_safe_folder_names() -> None:
    assert slug("../../evil") == "evil"
    assert slug("Ä b/c") == "b-c"
    assert slug("..") == ""


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "5\nlr = 3", "1\n[b]\nc = 2"])
def test_a_setting_that_is_not_one_toml_value_is_text(text: str) -> None:
    document: dict[str, Any] = {}
    apply_setting(document, f"plan.epochs={text}")
    assert document == {"plan": {"epochs": text}}


@pytest.mark.parametrize("text", ["nan", "[1.0, inf]", "9" * 20])
def test_a_setting_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used: the value must be a"):
        apply_setting({}, f"plan.lr={text}")


def test_errors_about_settings_and_methods_name_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "[[method]]\nname = 'ncm'")
    with pytest.raises(ConfigError, match=r"mine\.toml: --set method\.x\.rank=1: there is no method 'x'"):
        load_experiment(path, settings=["method.x.rank=1"])
    with pytest.raises(ConfigError, match=r"mine\.toml: method must be a table"):
        load_experiment(_file(tmp_path, "method = 3"))
