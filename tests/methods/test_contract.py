"""What every method must hold to: a new entry of METHODS is found and tested here."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import Samples, TaskStream
from tangentcl.methods import METHODS, Method, method_class
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TrainingPlan, run_stream
from tangentcl.training.checkpoint import load_learner, save_learner
from tangentcl.training.stream import ignore, learn_task

# Keywords that make a method small, and further variants worth the whole contract.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {"rank": 2}),
    "finetune-current": ("finetune", {"rank": 2, "logits": "current"}),
    "finetune-head": ("finetune", {"tune": "head"}),
    "finetune-full": ("finetune", {"tune": "full"}),
    "ncm": ("ncm", {}),
    "ncm-euclidean": ("ncm", {"metric": "euclidean"}),
    "joint": ("joint", {"rank": 2}),
    "joint-every-task": ("joint", {"rank": 2, "every_task": True}),
    "replay": ("replay", {"rank": 2, "budget": 12}),
    "replay-herding": ("replay", {"rank": 2, "budget": 12, "selection": "herding"}),
    "derpp": ("derpp", {"rank": 2, "budget": 12, "memory_batch": 8}),
    "derpp-herding": ("derpp", {"rank": 2, "budget": 7, "memory_batch": 8, "selection": "herding"}),
    "l2sp": ("l2sp", {"rank": 2}),
    "l2sp-pretrained": ("l2sp", {"rank": 2, "reference": "pretrained"}),
    "l2sp-full": ("l2sp", {"tune": "full"}),
    "ewc": ("ewc", {"rank": 2, "fisher_samples": 10}),
    "ewc-exact-full": ("ewc", {"tune": "full", "fisher": "exact", "decay": 0.9, "fisher_samples": 5}),
    "ewc-empirical-head": ("ewc", {"tune": "head", "fisher": "empirical", "logits": "current"}),
    "ewc_lora": ("ewc_lora", {"rank": 2, "fisher_samples": 10}),
    "lwf": ("lwf", {"rank": 2}),
    "lwf-dropout": ("lwf", {"rank": 2, "dropout": 0.5, "logits": "all"}),
    "lwf-full": ("lwf", {"tune": "full"}),
    "ntkcl": ("ntkcl", {"rank": 2, "n_prompts": 2}),
    "ranpac": ("ranpac", {"n_units": 40}),
    "ranpac-wide": ("ranpac", {"n_units": 300, "balanced": True, "strength": "gcv"}),
    "ranpac-no-lift": ("ranpac", {"n_units": 0, "strength": 0.1}),
    "ranpac-first-session": ("ranpac", {"n_units": 40, "first_session": "lora", "rank": 2}),
    "ranpac-evidence": ("ranpac", {"n_units": 40, "strength": "evidence"}),
    "ranpac-joint": ("ranpac", {"n_units": 40, "joint": True}),
    "slda": ("slda", {}),
    "slda-full-session": ("slda", {"first_session": "full", "shrinkage": "oas"}),
    "fecam": ("fecam", {}),
    "fecam-shared": ("fecam", {"shared": True}),
    "loranpac": ("loranpac", {"n_units": 60, "block": 25}),
    "ntk_fscil": ("ntk_fscil", {"rank": 2, "n_units": 24}),
    "ntk_fscil-prototypes": ("ntk_fscil", {"rank": 2, "n_units": 24, "head": "prototypes"}),
    "ntk_fscil-frozen": ("ntk_fscil", {"n_units": 24, "first_session": "off"}),
    "ntk_fscil-all": ("ntk_fscil", {"rank": 2, "n_units": 24, "fused_weight": 1.0, "spectrum": "log_condition"}),
    "ntk_fscil-orthogonality": (
        "ntk_fscil",
        {"rank": 2, "n_units": 300, "fused_weight": 1.0, "spectrum": "orthogonality", "strength": "holdout"},
    ),
    "spectral": ("spectral", {"rank": 2, "k": 4, "strength": 0.1}),
    "spectral-equal": ("spectral", {"rank": 2, "k": 4, "strength": 0.1, "weights": "equal"}),
    "spectral-jacobian": ("spectral", {"rank": 2, "k": 4, "strength": 0.1, "form": "jacobian"}),
    "spectral-head": ("spectral", {"tune": "head", "k": 4, "strength": 0.1}),
    "spectral-full": ("spectral", {"tune": "full", "k": 4, "strength": 0.01}),
    "nystrom": ("nystrom", {"n_landmarks": 30}),
    "gpm": ("gpm", {"rank": 2, "threshold": 0.7}),
    "gpm-head": ("gpm", {"tune": "head", "threshold": 0.8, "new_rows": "projected", "new_bias": 0.0}),
    "gpm-full": ("gpm", {"tune": "full", "threshold": 0.7}),
    "ogd": ("ogd", {"rank": 2, "directions": 10}),
    "ogd-head": ("ogd", {"tune": "head", "directions": 6, "max_directions": 14, "outputs": "all"}),
    "ogd-full": ("ogd", {"tune": "full", "directions": 10, "logits": "current"}),
    "ntkcl-released": ("ntkcl", {"rank": 2, "n_prompts": 2, "preset": "released"}),
    "ntkcl-theory": ("ntkcl", {"rank": 2, "n_prompts": 2, "preset": "theory", "ptm_section": True}),
    "ntkcl-attention": ("ntkcl", {"rank": 2, "n_prompts": 2, "prompts": "attention", "section_norm_train": True}),
    "ntkcl-dct": ("ntkcl", {"branches": "patch", "n_prompts": 2, "prompts": "dct", "modes": 4, "anchor": "ema"}),
    "ntkcl-channel": ("ntkcl", {"rank": 2, "branches": "channel", "ema": "decay", "ema_decay": 0.5}),
    "ntkcl-joint": ("ntkcl", {"rank": 2, "n_prompts": 2, "branches": "joint", "compensation": "mean"}),
    "ntkcl-section-attention": ("ntkcl", {"rank": 2, "n_prompts": 2, "fusion": "attention"}),
    "ntkcl-late": ("ntkcl", {"rank": 2, "branches": "channel", "first_block": 1, "ptm_section": False}),
    "ntkcl-cached": ("ntkcl", {"rank": 2, "n_prompts": 2, "cached_views": 2, "section_weights": (1.0, 1.0, 1.0)}),
    "slca": ("slca", {"align_samples": 16}),
    "slca-lora": ("slca", {"tune": "lora", "rank": 2, "align_samples": 16, "align_epochs": 2}),
    "slca-head": ("slca", {"tune": "head", "align_samples": 16}),
    "lae": ("lae", {"rank": 2}),
    "lae-fast": ("lae", {"rank": 2, "decay": 0.5}),
    "aper": ("aper", {"rank": 2}),
    "aper-full": ("aper", {"tune": "full"}),
    "ease": ("ease", {"rank": 2}),
    "ease-alone": ("ease", {"rank": 2, "alpha": 0.0, "adapter_dropout": 0.0}),
    "ntkcl-no-ema": ("ntkcl", {"rank": 2, "n_prompts": 2, "ema": "off", "fusion": "sum"}),
    "olora": ("olora", {"rank": 2}),
    "olora-absolute": ("olora", {"rank": 2, "penalty": "absolute", "strength": 0.01, "logits": "all"}),
    "inflora": ("inflora", {"rank": 2}),
    "inflora-all": ("inflora", {"rank": 2, "energy": 0.7, "logits": "all", "targets": ["query", "fc1"]}),
    "sdlora": ("sdlora", {"rank": 2}),
    "sdlora-reduced": ("sdlora", {"rank": 3, "reduction": [[1, 2], [2, 1]], "targets": ["value", "fc2"]}),
    "l2p": ("l2p", {"n_prompts": 4, "length": 2, "n_chosen": 2}),
    "l2p-backbone": ("l2p", {"n_prompts": 4, "length": 2, "n_chosen": 1, "read": "backbone", "balanced": True}),
    "dualprompt": ("dualprompt", {"general_length": 2, "expert_length": 3}),
    "dualprompt-all": ("dualprompt", {"general_length": 1, "expert_length": 2, "logits": "all"}),
    "coda_prompt": ("coda_prompt", {"n_components": 6, "length": 4}),
    "coda_prompt-free": ("coda_prompt", {"n_components": 3, "length": 2, "blocks": (0, 1), "orthogonality": 0.0}),
}
IN_BLOCKS = {"ease", "ntkcl", "l2p", "dualprompt", "coda_prompt"}  # methods that need a transformer's blocks
# Variants that `make test` runs: the first of each method, and a few. `make test-all` runs every one.
FIRST = {name: key for key, (name, _) in reversed(VARIANTS.items())}
ALWAYS = {*FIRST.values(), "finetune-head", "finetune-full", "ranpac-first-session", "spectral-head"}
# Those that `make test` stops and continues: one of each way to keep something.
STOPPED = {"coda_prompt", "derpp", "ewc", "finetune", "inflora", "joint", "lae", "ntkcl", "ogd", "ranpac", "spectral"}
PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.01, device="cpu", seed=3)

Make = Callable[[], Method]


def test_every_method_has_a_variant() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(METHODS)


@pytest.fixture(params=[pytest.param(v, marks=() if v in ALWAYS else pytest.mark.slow) for v in sorted(VARIANTS)])
def make(
    request: pytest.FixtureRequest, tiny_backbone: Callable[[], Backbone], tiny_blocks: Callable[[], Backbone]
) -> Make:
    name, keywords = VARIANTS[request.param]
    features = tiny_blocks if name in IN_BLOCKS else tiny_backbone

    def build() -> Method:
        torch.manual_seed(0)
        return method_class(name)(features(), **keywords)

    return build


def _trained(make: Make, stream: TaskStream) -> Method:
    method = make()
    run_stream(method, stream, PLAN)
    return method


def _test_batch(stream: TaskStream) -> torch.Tensor:
    return torch.cat([x for task in stream for x, _ in task.test.batches(100)])


def _scores(method: Method, x: torch.Tensor) -> torch.Tensor:
    method.eval()
    with torch.no_grad():
        return method.predict(x)


def test_equal_seeds_give_equal_numbers(make: Make, tiny_stream: TaskStream) -> None:
    first, second = make(), make()
    a, b = run_stream(first, tiny_stream, PLAN), run_stream(second, tiny_stream, PLAN)
    np.testing.assert_array_equal(a.matrix, b.matrix)
    x = _test_batch(tiny_stream)
    assert torch.equal(_scores(first, x), _scores(second, x))


def test_learns_the_last_task_and_predicts_every_seen_class(make: Make, tiny_stream: TaskStream) -> None:
    method = make()
    run_stream(method, tiny_stream, dataclasses.replace(PLAN, epochs=4))
    assert _scores(method, _test_batch(tiny_stream)).shape == (48, 6)
    last = tiny_stream[2]
    x, y = next(last.test.batches(100))
    within = _scores(method, x)[:, list(last.classes)].argmax(dim=1) + last.classes[0]
    assert float((within == y).float().mean()) > 0.8  # chance is one half


def test_frozen_parameters_stay_bit_equal(make: Make, tiny_stream: TaskStream) -> None:
    method = make()
    before = {name: p.detach().clone() for name, p in method.named_parameters() if not p.requires_grad}
    run_stream(method, tiny_stream, PLAN)
    after = dict(method.named_parameters())
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert not after[name].requires_grad


def test_state_round_trip(make: Make, tiny_stream: TaskStream) -> None:
    method = _trained(make, tiny_stream)
    restored = make()
    for task in tiny_stream:
        restored.begin_task(task)
    restored.load_state_dict(copy.deepcopy(method.state_dict()))
    x = _test_batch(tiny_stream)
    assert torch.equal(_scores(restored, x), _scores(method, x))
    assert restored.stored_samples == method.stored_samples


@pytest.mark.parametrize(
    ("make", "every"),
    [
        pytest.param(v, every, marks=() if v in STOPPED and every == 4 else pytest.mark.slow)
        for v in sorted(VARIANTS)
        for every in (0, 1, 4)
    ],
    indirect=["make"],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_numbers(
    make: Make, tiny_stream: TaskStream, tmp_path: Any, run_with_stops: Callable[..., Any], every: int
) -> None:
    plan = dataclasses.replace(PLAN, log_every=3)
    straight, expected, events = run_with_stops(make, tiny_stream, plan, tmp_path / "straight")
    stops = [2, 3, 5, 6, 9, 4] if every else [4, 9, 12]
    method, result, log = run_with_stops(make, tiny_stream, plan, tmp_path / "stopped", stops=stops, every=every)
    a, b = method.state_dict(), straight.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    np.testing.assert_array_equal(result.matrix, expected.matrix)
    np.testing.assert_array_equal(result.class_correct, expected.class_correct)
    for mine, other in zip(result.predictions, expected.predictions, strict=True):
        assert mine.keys() == other.keys()
        assert all((mine[k] == other[k]).all() for k in mine)
    assert log == events
    trainable = [{name: p.requires_grad for name, p in one.named_parameters()} for one in (method, straight)]
    assert trainable[0] == trainable[1]


def test_learner_file_round_trip(make: Make, tiny_stream: TaskStream, tmp_path: Any) -> None:
    method = _trained(make, tiny_stream)
    save_learner(method, tmp_path)
    restored = make()
    for task in tiny_stream:
        restored.begin_task(task)
    load_learner(restored, tmp_path)
    x = _test_batch(tiny_stream)
    assert torch.equal(_scores(restored, x), _scores(method, x))


def test_every_trainable_tensor_gets_a_gradient_within_two_steps(make: Make, tiny_stream: TaskStream) -> None:
    method = make()
    for task in tiny_stream:
        method.begin_task(task)
        samples = method.training_samples(task)
        if samples is None:
            continue
        trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
        alive: set[str] = set()
        method.train()
        optimizer = torch.optim.SGD(trained.values(), lr=0.1) if trained else None
        for x, y in list(samples.batches(16))[:2]:
            terms = method.training_loss(x, y)
            assert bool(terms) == bool(trained), "a term if and only if something is trained"
            if optimizer is None:
                continue
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            alive |= {name for name, p in trained.items() if p.grad is not None and bool(p.grad.any())}
            optimizer.step()
        assert alive == set(trained)


def test_prediction_does_not_depend_on_the_batch(make: Make, tiny_stream: TaskStream) -> None:
    method = _trained(make, tiny_stream)
    x = _test_batch(tiny_stream)
    together = _scores(method, x)
    alone = torch.cat([_scores(method, x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    shuffled = torch.randperm(len(x))
    torch.testing.assert_close(_scores(method, x[shuffled]), together[shuffled], rtol=1e-5, atol=1e-5)


def _holds_samples(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Samples) or type(value).__name__ in ("Task", "TaskStream"):
        return True
    if depth > 3:
        return False
    if isinstance(value, dict):
        return any(_holds_samples(item, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds_samples(item, depth + 1) for item in value)
    return False


def test_keeps_no_training_sample_unless_declared(make: Make, tiny_stream: TaskStream) -> None:
    method = _trained(make, tiny_stream)
    holds = any(
        _holds_samples(vars(module)) for module in method.modules() if type(module).__module__.startswith("tangentcl")
    )
    data = torch.cat([x for task in tiny_stream for x, _ in task.train.batches(100)]).flatten(1)  # [n, 12]
    for name, value in method.state_dict().items():
        rows = value.detach().double().reshape(-1, 12) if value.numel() and value.numel() % 12 == 0 else None
        if rows is not None:
            hidden = (torch.cdist(rows, data.double()) < 1e-9).any()
            holds |= bool(hidden)
            assert not hidden or method.keeps_samples, f"{name} holds training samples"
    assert holds == method.keeps_samples
    assert (method.stored_samples > 0) == method.keeps_samples


def test_base_and_uneven_tasks(make: Make, tiny_source: Any) -> None:
    from tangentcl.data import ArrayTransform, class_incremental

    stream = class_incremental(tiny_source, base=3, increment=2, order_seed=1)
    stream = stream.with_transforms(ArrayTransform(), ArrayTransform())
    assert [len(task.classes) for task in stream] == [3, 2, 1]
    result = run_stream(make(), stream, PLAN)
    assert np.isfinite(result.matrix[2]).all()


def test_learns_in_half_precision(make: Make, tiny_stream: TaskStream) -> None:
    method = make()
    result = run_stream(method, tiny_stream, dataclasses.replace(PLAN, precision="bf16"))
    assert np.isfinite(result.matrix[2]).all()
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())
    scores = _scores(method, _test_batch(tiny_stream))
    assert not bool(scores.isnan().any())


def test_learning_a_task_leaves_the_global_numpy_generator_alone(make: Make, tiny_stream: TaskStream) -> None:
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    learn_task(make(), tiny_stream[0], PLAN, Runtime(device="cpu"), ignore)
    assert np.random.rand() == expected
