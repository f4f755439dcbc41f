"""Published numbers beside our own: the numbers of the right row, and words where there are none."""

from __future__ import annotations

import json

import pytest

from tangentcl.errors import RecordError
from tangentcl.records import Published, Record, write_checksums
from tangentcl.reports import rows
from tangentcl.reports.html import page
from tangentcl.reports.published import known_published, published_table
from tangentcl.reports.tables import percent

RESULTS = [
    Published("their NCM", "paper, table 1", ours="ncm", average=91.5, average_std=0.25, last=88.0),
    Published("theirs alone", "paper, table 2", note="other order"),
    Published("to come", "paper, table 3", ours="later", last=70.0),
]


@pytest.fixture
def found(digits):
    return rows([Record.read(p) for p in digits])


def test_ours_stands_beside_theirs(found) -> None:
    ncm = next(row for row in found if row.label == "ncm")
    heading, body = published_table(found, {ncm.experiment: RESULTS})
    ours = [percent(ncm.metrics[name], 3) for name in ("average_accuracy", "last_accuracy")]
    assert body == [
        ["their NCM", "paper, table 1", "91.50 ± 0.25", ours[0], "88.00", ours[1], "0, 1, 2"],
        ["theirs alone", "paper, table 2; other order", "–", "–", "–", "–", ""],
        ["to come", "paper, table 3", "–", "not run", "70.00", "not run", ""],
    ]
    two, body = published_table(found, {ncm.experiment: RESULTS[:1], "another": RESULTS[:1]})
    assert two == ["experiment", *heading]
    assert [line[0] for line in body] == [ncm.experiment, "another"]
    assert body[1][4] == "not run"  # a row of the same label in another experiment is none of its own


def test_records_bring_them_along_and_the_page_shows_them(tmp_path, write) -> None:
    run = write(tmp_path, "ncm", 0)
    path = run / "environment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "published": [r.describe() for r in RESULTS]}))
    write_checksums(run)
    read = rows([Record.read(run)])
    assert known_published(read) == {read[0].experiment: RESULTS}
    text = page(read)
    assert "Published numbers beside these" in text
    assert "91.50 ± 0.25" in text
    assert "not run" in text
    assert "Published numbers" not in page(rows([Record.read(write(tmp_path / "b", "ncm", 0))]))
    path.write_text(json.dumps({**content, "published": [{"label": "x"}]}))
    write_checksums(run)
    with pytest.raises(RecordError, match=r"damaged: .*needs a source"):
        _ = Record.read(run).published
