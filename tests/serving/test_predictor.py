"""What a predictor takes, what it gives, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tangentcl import Predictor, load_predictor
from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.serving.raw_inputs import raw_inputs

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture
def run(learn: Any) -> Any:
    return learn({"name": "ncm"})


@pytest.fixture
def predictor(run: Any) -> Predictor:
    return load_predictor(run.folder, device="cpu")


def test_images_in_every_form_give_the_same_scores(predictor: Predictor, run: Any, tmp_path: Path) -> None:
    raw = run.raw(0)[:4]
    pictures = [Image.fromarray(image) for image in raw]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for picture, path in zip(pictures, paths):
        picture.save(path)
    expected = predictor.scores(raw)
    for given in (np.stack(raw), tuple(raw), pictures, paths, [str(path) for path in paths]):
        np.testing.assert_array_equal(predictor.scores(given), expected)
    names = predictor.predict(paths)
    assert names == [predictor.class_names[label] for label in expected.argmax(1)]
    assert predictor.predict(paths[0]) == predictor.predict(str(paths[0])) == predictor.predict(pictures[0])
    assert predictor.predict(pictures[0]) == names[:1]


def test_no_input_gives_no_row(predictor: Predictor) -> None:
    assert predictor.predict([]) == []
    assert predictor.scores([]).shape == (0, 10)


def test_softmax_is_one_in_every_row(predictor: Predictor, run: Any) -> None:
    found = predictor.softmax(run.raw(1))
    np.testing.assert_allclose(found.sum(1), 1)
    assert found.argmax(1).tolist() == predictor.labels(run.raw(1)).tolist()


def test_a_task_restricts_the_answers(predictor: Predictor, run: Any) -> None:
    for task in (1, "T2"):
        assert set(predictor.labels(run.raw(0), task=task)) <= {4, 5, 6}
        assert set(predictor.predict(run.raw(0), task=task)) <= {"4", "5", "6"}
    scores = predictor.scores(run.raw(0), task=1)
    assert np.isneginf(scores[:, [0, 1, 2, 3, 7, 8, 9]]).all()
    np.testing.assert_array_equal(scores[:, 4:7], predictor.scores(run.raw(0))[:, 4:7])
    assert predictor.softmax(run.raw(0), task=1)[:, :4].max() == 0
    with pytest.raises(ConfigError, match=r"there is no task 'T4': give 0 to 2, or a name\. Known: T1, T2, T3"):
        predictor.predict(run.raw(0), task="T4")
    with pytest.raises(ConfigError, match="there is no task 3"):
        predictor.predict(run.raw(0), task=3)


def test_task_incremental_answers_are_those_of_the_evaluation(learn: Any) -> None:
    from tangentcl.training import Runtime, predicted_classes

    stream = {"kind": "task_incremental", "n_tasks": 5, "train_per_class": 3, "test_per_class": 3}
    run = learn({"name": "finetune", "tune": "head"}, stream=stream)
    predictor = load_predictor(run.folder, device="cpu")
    for task in (0, 4):
        test, among = run.stream[task].test, run.stream[task].classes
        expected = predicted_classes(run.method, test, Runtime(device="cpu"), among=among)
        assert predictor.labels(run.raw(task), task=task).tolist() == expected.tolist()


def test_a_bad_image_is_named_or_left_out(predictor: Predictor, run: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    given = [run.raw(0)[0], tmp_path / "bad.png", run.raw(0)[1]]
    with pytest.raises(DataError, match=r"Input 1 cannot be used: Cannot decode the image .*bad.png"):
        predictor.predict(given)
    skipped: list[tuple[int, str]] = []
    made = list(predictor.batches(raw_inputs(given, "image"), skip=lambda i, why: skipped.append((i, why))))
    assert [positions.tolist() for positions, _ in made] == [[0, 2]]
    assert [i for i, _ in skipped] == [1]
    with pytest.raises(DataError, match=r"Cannot read the image .*gone.png"):
        predictor.predict(str(tmp_path / "gone.png"))


@pytest.mark.parametrize(
    ("given", "modality", "message"),
    [
        (5, "image", "Expected a list of images: .*; got int. Try list"),
        ((x for x in "ab"), "text", "got generator. Try list"),
        ({"a": 1}, "text", "got dict"),
        (np.zeros((8, 8)), "image", r"An array of shape \[8, 8\] is one image: put it into a list"),
        (np.zeros(8), "image", r"got an array of shape \[8\]"),
        (["a", 3], "text", "Expected texts; input 1 is a int, 3."),
        ([Path("a.png")], "text", "Expected texts; input 0 is a PosixPath"),
        (["a"], "array", "Expected arrays of numbers; input 0 is a str, 'a'."),
    ],
)
def test_what_is_no_input(given: Any, modality: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        raw_inputs(given, modality)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"device": "tpuu"}, "unknown device 'tpuu'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"precision": "fp16", "device": "cpu"}, "precision 'fp16' needs CUDA, the device is 'cpu'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_used(run: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_predictor(run.folder, **keywords)


def test_scores_that_are_no_numbers_are_named(predictor: Predictor, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = predictor.method.predict

    def broken(x: Any) -> Any:
        scores = predict(x).clone()
        scores[1, 0] = float("nan")
        return scores

    monkeypatch.setattr(predictor.method, "predict", broken)
    with pytest.raises(ModelError, match=r"NCM.predict gave NaN for input 1"):
        predictor.predict(run.raw(0))
    monkeypatch.setattr(predictor.method, "predict", lambda x: predict(x)[:, :3])
    with pytest.raises(ModelError, match=r"must give scores \[12, 10\], got \(12, 3\)"):
        predictor.predict(run.raw(0))


def test_its_name_says_what_it_is(predictor: Predictor) -> None:
    assert repr(predictor) == "Predictor('ncm' of 'small', 10 classes of 3 tasks, image inputs, on cpu)"
