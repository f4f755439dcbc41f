"""Images by lists: what the published archives say, and what is wrong with a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tangentcl.data.image_lists import coda_lists, cub, domain_lists, lists, pets
from tangentcl.errors import DataError

from .conftest import cub as make_cub
from .conftest import domains as make_domains
from .conftest import images, write_lines
from .conftest import pets as make_pets


def test_cub_as_published(tmp_path: Path) -> None:
    make_cub(tmp_path, 3)
    write_lines(tmp_path / "classes.txt", ["2 002.class", "10 010.class", "1 001.class", "3 003.class"])
    source = cub(tmp_path)
    assert source.class_names == ("001.class", "002.class", "003.class", "010.class")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.train.ids[:2].tolist() == ["images/001.class/0.png", "images/001.class/1.png"]
    assert source.test.ids[:2].tolist() == ["images/001.class/2.png", "images/001.class/3.png"]
    assert source.test.inputs[0].size == (4, 4)


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("train_test_split.txt", ["1 1", "2 0"], "differ in 2 images, such as number 3"),
        ("train_test_split.txt", ["1 1", "2 1", "3 0", "4 2"], "Expected 0 or 1 .* got '2'"),
        ("image_class_labels.txt", ["1 1", "2 1", "3 1", "4 7"], "has the class 7"),
        ("images.txt", ["one 001.class/0.png"], "Expected a number and a value in line 1"),
        ("images.txt", [""], "is empty"),
        (
            "images.txt",
            ["1 001.class/0.png", "2 001.class/9.png", "3 x/2.png", "4 x/3.png"],
            "first is images/001.class/9",
        ),
        ("images.txt", ["1 ../../x.png", "2 a/1.png", "3 a/2.png", "4 a/3.png"], "leads out of its folder"),
    ],
)
def test_what_is_wrong_with_the_lists_of_cub(file: str, lines: list[str], message: str, tmp_path: Path) -> None:
    make_cub(tmp_path, 1)
    write_lines(tmp_path / file, lines)
    with pytest.raises(DataError, match=message):
        cub(tmp_path)


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    make_cub(tmp_path, 1)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"Cannot read the list .*classes\.txt"):
        cub(tmp_path)


def test_pets_as_published(tmp_path: Path) -> None:
    make_pets(tmp_path, 13)
    source = pets(tmp_path)
    assert source.class_names[0] == "Cat_breed0"
    assert source.groups["dog"] == ("dog_breed12",)
    assert np.bincount(source.train.labels).tolist() == np.bincount(source.test.labels).tolist() == [2] * 13
    write_lines(tmp_path / "annotations" / "test.txt", ["Cat_breed0_1 1 3 1"])
    with pytest.raises(DataError, match=r"Expected 'Breed_1 1 1 1' in line 1 of .*test\.txt"):
        pets(tmp_path)


def test_domains_come_from_their_lists(tmp_path: Path) -> None:
    make_domains(tmp_path, 3, ("real", "clipart"))
    source = domain_lists(tmp_path)
    assert source.domain_names == ("clipart", "real")
    assert source.train.domains.tolist() == [0] * 6 + [1] * 6
    assert source.test.ids[3] == "real/001.class/2.png"


def test_classes_are_in_the_order_of_their_labels(tmp_path: Path) -> None:
    images(tmp_path, ["real/zebra/0.png", "real/ant/0.png", "real/zebra/1.png", "real/ant/1.png"])
    write_lines(tmp_path / "real_train.txt", ["real/ant/0.png 1", "real/zebra/0.png 0"])
    write_lines(tmp_path / "real_test.txt", ["real/ant/1.png 1", "real/zebra/1.png 0"])
    source = domain_lists(tmp_path)
    assert source.class_names == ("zebra", "ant")
    assert source.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["real/ant/1.png 0", "real/ant/2.png 1"], "class ant has the labels 0 and 1, in line 2"),
        (["real/ant/1.png 0", "real/bee/1.png 0"], "label 0 stands for the classes ant and bee"),
        (["real/ant/1.png 0", "real/bee/1.png"], "Line 2 of .* is without a label, unlike others"),
        (["real/ant/1.png zero"], "Expected 'path' or 'path label' in line 1"),
        (["ant.png 0"], "lies in no class folder"),
        (["/etc/ant/1.png 0"], "leads out of its folder"),
        (["real/../../ant/1.png 0"], "leads out of its folder"),
        (["C:/data/ant/1.png 0"], "leads out of its folder"),
        (["real\\ant\\x/1.png 0"], "leads out of its folder"),
        (["real/ant/7.png 0"], "1 of 1 listed images are not below"),
    ],
)
def test_what_is_wrong_with_a_list(lines: list[str], message: str, tmp_path: Path) -> None:
    images(tmp_path, ["real/ant/0.png", "real/ant/1.png", "real/ant/2.png", "real/bee/1.png"])
    write_lines(tmp_path / "real_train.txt", lines)
    write_lines(tmp_path / "real_test.txt", ["real/ant/0.png 0"])
    with pytest.raises(DataError, match=message):
        domain_lists(tmp_path)


def test_a_domain_with_one_list_only(tmp_path: Path) -> None:
    make_domains(tmp_path, 2)
    (tmp_path / "sketch_test.txt").unlink()
    with pytest.raises(DataError, match=r"Expected sketch_train\.txt and sketch_test\.txt"):
        domain_lists(tmp_path)


def test_plain_lists_without_labels(tmp_path: Path) -> None:
    images(tmp_path, [f"{name}/{i} of 3.png" for name in ("bee", "ant") for i in range(3)])
    write_lines(tmp_path / "train.txt", ["bee/0 of 3.png", "ant/0 of 3.png", "ant/1 of 3.png"])
    write_lines(tmp_path / "test.txt", ["bee/2 of 3.png", "ant/2 of 3.png"])
    source = lists(tmp_path)
    assert source.class_names == ("ant", "bee")
    assert source.train.labels.tolist() == [1, 0, 0]


def test_the_lists_of_coda_prompt_overrule_folders_train_and_test(tmp_path: Path) -> None:
    images(tmp_path, ["train/n01/art_0.jpg", "test/n01/art_1.jpg", "test/n02/art_0.jpg", "n02/art_1.jpg"])
    prefix = "- data/imagenet-r"
    write_lines(
        tmp_path / "imagenet-r_train.yaml",
        ["data:", f"{prefix}/test/n01/art_1.jpg", f"{prefix}/train/n02/art_1.jpg", "targets:", "- 0", "- 1"],
    )
    write_lines(
        tmp_path / "imagenet-r_test.yaml",
        ["data:", f"{prefix}/train/n01/art_0.jpg", f"{prefix}/test/n02/art_0.jpg", "targets:", "- 0", "- 1"],
    )
    source = coda_lists(tmp_path)
    assert source.class_names == ("n01", "n02")
    assert source.train.ids.tolist() == ["test/n01/art_1.jpg", "n02/art_1.jpg"]
    assert source.test.ids.tolist() == ["train/n01/art_0.jpg", "test/n02/art_0.jpg"]
    write_lines(tmp_path / "imagenet-r_test.yaml", ["data:", f"{prefix}/../../n01/art_0.jpg"])
    with pytest.raises(DataError, match="leads out of its folder"):
        coda_lists(tmp_path)
    write_lines(tmp_path / "imagenet-r_test.yaml", ["data:", f"{prefix}/train/n01/art_9.jpg"])
    with pytest.raises(DataError, match=r"the first is n01/art_9\.jpg"):
        coda_lists(tmp_path)
    write_lines(tmp_path / "imagenet-r_test.yaml", ["data: []"])
    with pytest.raises(DataError, match="there are none"):
        coda_lists(tmp_path)
