"""A clean process that forks runs of a small experiment and kills them. Not a test: `test_crash` starts it.

Each line of input is a request, each line of output its answer. A fork starts in milliseconds, since everything is
imported; nothing has computed yet in this process, so threads and process groups begin anew in each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (imported where used, by every fork)
import numpy as np
import peft  # noqa: F401
import torch

from tangentcl.data import ArrayTransform, from_arrays
from tangentcl.experiments import load_experiment
from tangentcl.experiments import run as runs

spec = importlib.util.spec_from_file_location("tests_conftest", Path(__file__).parents[1] / "conftest.py")
assert spec is not None
assert spec.loader is not None
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)

EXPERIMENT = """
name = "crash"
save = "tasks"
[stream]
n_tasks = 3
order_seed = 5
[plan]
epochs = 3
batch_size = 8
lr = 0.01
log_every = 2
device = "cpu"
"""
METHODS = {
    "finetune": 'name = "finetune"\nrank = 2\ndropout = 0.2',
    "ntkcl": 'name = "ntkcl"\nrank = 2\nn_prompts = 2',
    "ranpac": 'name = "ranpac"\nn_units = 40\nfirst_session = "lora"\nrank = 2',
    "replay": 'name = "replay"\nrank = 2\nbudget = 12',
}


def source(table: Any) -> Any:
    """Six classes of [3, 4] arrays, apart enough to be learned."""
    rng = np.random.RandomState(0)
    y = np.arange(120) % 6
    x = rng.randn(120, 3, 4).astype(np.float32) + 2 * rng.randn(6, 3, 4).astype(np.float32)[y]
    return from_arrays(x, y, name="six")


def backbone_of(method: str) -> Any:
    maker = conftest.tiny_blocks if method == "ntkcl" else conftest.tiny_backbone
    return getattr(
        maker, "__wrapped__", maker.__pytest_wrapped__.obj if hasattr(maker, "__pytest_wrapped__") else maker
    )


def die_at(n: int) -> None:
    """SIGKILL to oneself before the n-th of the calls that change what is on the disk."""
    left = [n]
    for name in ("fsync", "replace", "unlink"):
        original = getattr(os, name)

        def call(*arguments: Any, original: Any = original, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(os, name, call)


def child(request: dict[str, Any], rank: int, world: int, port: int) -> None:
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    method, out = request["method"], Path(request["out"])
    runs.build_source = source  # type: ignore[assignment]
    runs.build_backbone = lambda table: backbone_of(method)()()  # type: ignore[assignment]
    runs.transforms = lambda features, table: (ArrayTransform(), ArrayTransform())  # type: ignore[assignment]
    file = out.parent / f"{method}-{os.getpid()}.toml"
    file.write_text(f"{EXPERIMENT}[[method]]\n{METHODS[method]}\n")
    experiment = load_experiment(file)
    file.unlink()
    if request.get("call") is not None and rank == 0:
        die_at(request["call"])
    outcomes = runs.run_experiment(experiment, out, checkpoint_every=request.get("every", 2))
    if [o.status for o in outcomes] not in (["done"], ["skipped"]):
        raise SystemExit(f"{outcomes}")
    if world > 1:
        torch.distributed.destroy_process_group()


def start(request: dict[str, Any], rank: int, world: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        child(request, rank, world, port)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fork the processes, kill them if asked, and say how they ended."""
    world = request.get("processes", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    pids = [start(request, rank, world, port) for rank in range(world)]
    left = dict(enumerate(pids))
    codes: dict[int, int] = {}
    deadline = began + request.get("after", 1e9)
    while left:
        for rank, pid in list(left.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del left[rank]
        died = any(code != 0 for code in codes.values())
        if left and (died or time.perf_counter() > deadline):
            for pid in left.values():  # those that wait for a dead one would wait for ever
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return {"codes": [codes[rank] for rank in range(world)], "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
