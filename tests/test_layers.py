"""The house: imports point downward, and importing the package stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tangentcl

PACKAGE = Path(tangentcl.__file__).parent

# What each room may import from inside the package, besides errors, documents, files and itself.
ALLOWED = {
    "errors": set(),
    "documents": set(),
    "files": set(),
    "processes": set(),
    "metrics": set(),
    "records": {"metrics"},
    "reports": {"records", "metrics"},
    "data": set(),
    "nn": {"data"},
    "linalg": set(),
    "kernels": {"linalg"},
    "forecast": {"kernels", "linalg", "nn", "data"},
    "theory": {"linalg", "kernels", "forecast", "nn", "data"},
    "losses": set(),
    "heads": set(),
    "protect": {"linalg", "kernels", "forecast", "nn", "data"},
    "hf": {"protect"},
    "methods": {"protect", "losses", "heads", "theory", "linalg", "nn", "data"},
    "training": {"theory", "forecast", "kernels", "linalg", "methods", "nn", "data", "metrics"},
    "experiments": {"training", "forecast", "methods", "nn", "data", "metrics", "records", "reports"},
    "serving": {"experiments", "training", "methods", "nn", "data", "records"},
    "pretraining": {"nn", "data"},
    "cli": {"serving", "experiments", "training", "methods", "forecast", "nn", "data", "records", "reports", "metrics"},
    "__init__": {
        "serving",
        "hf",
        "protect",
        "data",
        "nn",
        "kernels",
        "forecast",
        "methods",
        "training",
        "experiments",
        "metrics",
        "records",
    },
    "__main__": {"cli"},
}


def _imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, at any depth of the file."""
    package = ("tangentcl", *path.relative_to(PACKAGE).with_suffix("").parts)[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            modules = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        found |= {m.split(".")[1] for m in modules if m.startswith("tangentcl.")}
    return {room for room in found if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ALLOWED, f"a new room, {room}: add it to the table of layers"
    assert _imports(path) - ALLOWED[room] - {room, "errors", "documents", "files", "processes"} == set()


def _loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_no_optional_package() -> None:
    loaded = _loaded_by("import tangentcl; tangentcl.Finetune; tangentcl.run_stream; tangentcl.class_incremental")
    heavy = {"torchvision", "timm", "transformers", "peft", "datasets", "matplotlib", "accelerate", "sklearn", "scipy"}
    heavy |= {"tensorboard", "mlflow", "wandb"}
    assert loaded & heavy == set()
    assert "torch" in loaded


def test_import_alone_and_parser_load_no_torch() -> None:
    assert "torch" not in _loaded_by("import tangentcl")
    assert "torch" not in _loaded_by("from tangentcl.cli import parser; parser()")
    assert "torch" not in _loaded_by("import tangentcl.reports.html, tangentcl.records, tangentcl.metrics")


def test_public_names_exist() -> None:
    for name in tangentcl.__all__:
        assert getattr(tangentcl, name) is not None
    with pytest.raises(AttributeError, match="Did you mean 'Finetune'"):
        tangentcl.Fientune  # noqa: B018
