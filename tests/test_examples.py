"""Every program in examples/ runs as a user would start it, and stays short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(*arguments: str, folder: Path = EXAMPLES) -> str:
    """What the program prints; it must end well and write nothing beside itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """The text encoder of $TANGENTCL_MODELS, or a random one with a vocabulary of letters."""
    models = os.environ.get("TANGENTCL_MODELS")
    if models and (Path(models) / "all-MiniLM-L6-v2").is_dir():
        return str(Path(models) / "all-MiniLM-L6-v2")
    import transformers

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=len(words))
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    return str(tmp_path)


def test_own_images() -> None:
    printed = run("own_images.py")
    assert "NCM" in printed
    assert "forgetting" in printed


def test_own_method() -> None:
    assert run("own_method.py").count("[") == 6  # a matrix of five rows


def test_own_method_from_an_experiment_file(tmp_path: Path) -> None:
    settings = ["stream.train_per_class=4", "stream.test_per_class=4", "plan.epochs=1"]
    run("-m", "tangentcl", "run", "own_method.toml", "--out", str(tmp_path), "--set", *settings)
    accuracy = json.loads((tmp_path / "own-method" / "first-session" / "seed-0" / "accuracy.json").read_text())
    assert len(accuracy["matrix"]) == 5


def test_text_stream(encoder: str) -> None:
    assert "my cards are missing ->" in run("text_stream.py", encoder)


@pytest.mark.parametrize("program", ["protect_pytorch.py", "protect_trainer.py"])
def test_protection(program: str) -> None:
    lines = [line for line in run(program).splitlines() if "accuracy" in line]
    without, guarded = (float(line.split("accuracy ")[1].split()[0]) for line in lines)
    assert without < 0.1
    assert guarded > 0.4


def test_every_program_is_tested_and_short() -> None:
    assert PROGRAMS == [
        "own_images.py",
        "own_method.py",
        "protect_pytorch.py",
        "protect_trainer.py",
        "text_stream.py",
    ]
    for name in PROGRAMS:
        lines = [line for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) <= (45 if name == "protect_trainer.py" else 30)


def test_the_page_on_methods_shows_the_example() -> None:
    source = (EXAMPLES / "own_method.py").read_text(encoding="utf-8")
    shown = source[source.index("class FirstSession") : source.index("\n\nif __name__")]
    assert shown in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
