"""Time and memory of the back ends of the empirical kernel, beside naive per-sample Jacobians.

    python -m benchmarks.ntk [--n 16 32 --outputs 10 --rank 8 --tokens 32]

The full kernel K(X, X), all outputs resolved, of a text encoder with LoRA on query and value (the head is frozen). The
naive computation is the usual torch.func recipe: ``vmap(jacrev)`` over all samples at once, with the attention the
model came with, and one product of the rows with themselves. The matrix-free back end is timed for a single product
with a vector. Each case is a process of its own with one thread: CPU seconds (of a second call; the first loads code),
and by how much the peak resident memory rose in the first. Errors are the largest difference to the float64 kernel at
n = 4, relative to its largest entry.

Needs ``TANGENTCL_MODELS`` (all-MiniLM-L6-v2).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError
from tangentcl.kernels import EmpiricalNTK, PseudoNTK
from tangentcl.kernels.batch import samples
from tangentcl.nn import add_lora, backbone

Texts = dict[str, Tensor]
CASES = ("naive", "jacobian", "layers", "matrix_free", "pseudo")


class Classifier(nn.Module):
    """MiniLM with LoRA away from its start, and a frozen random head."""

    def __init__(self, folder: Path, n_outputs: int, rank: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = backbone(str(folder / "all-MiniLM-L6-v2"))
        add_lora(self.backbone, rank)
        for name, p in self.backbone.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.02)
        self.head = nn.Linear(self.backbone.width, n_outputs).requires_grad_(False)

    def forward(self, x: Texts) -> Tensor:
        return self.head(self.backbone(x))


def random_texts(n: int, tokens: int) -> Texts:
    """Token ids without padding."""
    ids = torch.randint(1000, 20_000, (n, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def naive(model: nn.Module, x: Texts) -> Tensor:
    """K from per-sample Jacobians, as in the torch.func tutorial."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def outputs(values: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        batch = {"input_ids": ids[None], "attention_mask": mask[None]}
        return torch.func.functional_call(model, values, (batch,))[0]

    per_sample = torch.func.vmap(torch.func.jacrev(outputs), (None, 0, 0))
    blocks = per_sample(parameters, x["input_ids"], x["attention_mask"])
    J = torch.cat([block.flatten(2) for block in blocks.values()], dim=2).flatten(0, 1)  # [n C, P]
    return J @ J.T


def compute(case: str, model: nn.Module, x: Texts) -> Tensor:
    """The kernel, or one product with it."""
    if case == "naive":
        return naive(model, x)
    if case == "pseudo":
        return PseudoNTK(model)(x).base.to_dense(torch.float32)
    K = EmpiricalNTK(model, backend=case)(x)
    if case == "matrix_free":
        return K @ torch.ones(K.shape[1])
    return K.to_dense(torch.float32)


def peak_megabytes() -> float:
    """Largest memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def one_case(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Measured in this process."""
    torch.set_num_threads(1)
    model = Classifier(Path(os.environ["TANGENTCL_MODELS"]), options.outputs, options.rank).eval()
    x = random_texts(options.n[0], options.tokens)
    with torch.no_grad():
        model(samples(x, 0, 4))
        start = time.process_time()
        model(x)
        forward = time.process_time() - start
    before = peak_megabytes()
    compute(case, model, x)
    memory = peak_megabytes() - before
    start = time.process_time()
    compute(case, model, x)
    seconds = time.process_time() - start
    found = {"seconds": seconds, "megabytes": memory, "forwards": seconds / forward}
    if case in ("naive", "jacobian", "layers", "matrix_free"):
        few = samples(x, 0, 4)
        single = compute(case, model, few)
        double = EmpiricalNTK(model.double(), backend="layers")(few).to_dense()
        exact = double @ torch.ones(len(double)).double() if case == "matrix_free" else double
        found["error"] = float((single - exact).abs().max() / exact.abs().max())
    return found


def in_its_own_process(case: str, n: int, options: argparse.Namespace) -> dict[str, float]:
    """The same, in a new process."""
    sizes = ("--n", n, "--outputs", options.outputs, "--rank", options.rank, "--tokens", options.tokens)
    command = [sys.executable, "-m", "benchmarks.ntk", "--case", case, *map(str, sizes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print a row per back end and number of samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[16, 32])
    for name, default in (("outputs", 10), ("rank", 8), ("tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", choices=CASES, help="measure one case in this process and print it as JSON")
    options = parser.parse_args()
    if "TANGENTCL_MODELS" not in os.environ:
        raise ConfigError("benchmarks.ntk needs TANGENTCL_MODELS, a folder with all-MiniLM-L6-v2")
    if options.case:
        print(json.dumps(one_case(options.case, options)))
        return 0
    print(f"MiniLM, LoRA rank {options.rank}, C = {options.outputs}, {options.tokens} tokens, one thread, float32")
    print(f"{'n':>4s}  {'kernel':12s} {'CPU s':>8s} {'peak MB':>8s} {'forwards':>9s} {'of naive':>9s} {'error':>8s}")
    for n in options.n:
        base = 0.0
        for case in CASES:
            found = in_its_own_process(case, n, options)
            base = base or found["seconds"]
            print(
                f"{n:4d}  {case:12s} {found['seconds']:8.2f} {found['megabytes']:8.0f} {found['forwards']:9.1f} "
                f"{found['seconds'] / base:8.0%} {found.get('error', float('nan')):8.1e}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
