"""Every method of METHODS can be exported and loaded without the data, and answers as it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tangentcl import export_run, load_predictor
from tangentcl.methods import METHODS

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {"rank": 2}),
    "finetune-full": ("finetune", {"tune": "full"}),
    "ncm": ("ncm", {}),
    "joint": ("joint", {"rank": 2}),
    "replay": ("replay", {"rank": 2, "budget": 10}),
    "derpp": ("derpp", {"rank": 2, "budget": 10}),
    "l2sp": ("l2sp", {"rank": 2}),
    "ewc": ("ewc", {"rank": 2, "fisher_samples": 5}),
    "ewc_lora": ("ewc_lora", {"rank": 2, "fisher_samples": 5}),
    "lwf": ("lwf", {"rank": 2}),
    "ntkcl": ("ntkcl", {"rank": 2, "n_prompts": 2}),
    "ranpac": ("ranpac", {"n_units": 40}),
    "ranpac-first-session": ("ranpac", {"n_units": 40, "first_session": "lora", "rank": 2}),
    "slda": ("slda", {}),
    "slda-joint": ("slda", {"joint": True}),
    "fecam": ("fecam", {}),
    "nystrom": ("nystrom", {"n_landmarks": 10}),
    "loranpac": ("loranpac", {"n_units": 30, "block": 10}),
    "ntk_fscil": ("ntk_fscil", {"rank": 2, "n_units": 20}),
    "gpm": ("gpm", {"rank": 2}),
    "ogd": ("ogd", {"rank": 2, "directions": 8}),
}


def test_every_method_has_a_variant() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(METHODS)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_an_export_gives_the_scores_of_the_run_to_the_last_bit(
    variant: str, learn: Any, small_backbones: None, tmp_path: Path
) -> None:
    name, keywords = VARIANTS[variant]
    run = learn({"name": name, **keywords})
    made = export_run(run.folder, tmp_path / "export")
    loaded, direct = load_predictor(made.folder, device="cpu"), load_predictor(run.folder, device="cpu")
    assert loaded.class_names == [str(c) for c in range(10)]
    for task in range(3):
        expected = run.scores(task)
        np.testing.assert_array_equal(loaded.scores(run.raw(task)).astype(np.float32), expected)
        np.testing.assert_array_equal(direct.scores(run.raw(task)).astype(np.float32), expected)
        assert loaded.labels(run.raw(task)).tolist() == expected.argmax(1).tolist()
    one_by_one = load_predictor(made.folder, device="cpu", batch_size=1).scores(run.raw(0))
    np.testing.assert_allclose(one_by_one, run.scores(0), rtol=1e-5, atol=1e-5)


def test_a_fresh_process_gives_the_same_scores(learn: Any, tmp_path: Path) -> None:
    run = learn({"name": "finetune", "rank": 2})
    made = export_run(run.folder, tmp_path / "export")
    np.save(tmp_path / "raw.npy", np.stack(run.raw(1)))
    code = (
        "import sys, numpy as np, torch; torch.set_num_threads(int(sys.argv[4]))\n"
        "from tangentcl import load_predictor\n"
        "np.save(sys.argv[3], load_predictor(sys.argv[1], device='cpu').scores(np.load(sys.argv[2])))\n"
    )
    import torch

    files = [made.folder, tmp_path / "raw.npy", tmp_path / "scores.npy", torch.get_num_threads()]
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), run.scores(1))
