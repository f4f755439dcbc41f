"""A real `Trainer` with the guard, against a loop that is written out."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset

import tangentcl
from tangentcl.errors import ConfigError, ModelError
from tangentcl.protect.spectral import SpectralRegularizer

VOCABULARY, LENGTH, PER_CLASS = 60, 8, 12


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Sentences of two classes, each with words of its own and some that all share; a few are padded."""

    def __init__(self, classes: tuple[int, ...], seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.tensor(classes).repeat_interleave(PER_CLASS)[torch.randperm(24, generator=draw)]
        own = 20 + 10 * self.labels[:, None] + torch.randint(0, 10, (24, LENGTH), generator=draw)
        shared = torch.randint(1, 20, (24, LENGTH), generator=draw)
        self.ids = torch.where(torch.rand(24, LENGTH, generator=draw) < 0.5, own, shared)
        self.mask = torch.ones(24, LENGTH, dtype=torch.int64)
        self.mask[::3, 5:] = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids, "attention_mask": self.mask}


OLD, NEW = Tokens((0, 1), 0), Tokens((2, 3), 1)


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    out: torch.Tensor = model(**batch).logits
    return out


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LENGTH, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def adapted() -> Any:
    """LoRA whose B is not zero, and a classifier that trains, in float64."""
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_dropout=0.0, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(bert(), settings)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05)
    return model.double()


class InOrder(transformers.Trainer):
    """Batches in the order of the data, and the mean of the losses that are accumulated.

    By itself the Trainer sums them, since it takes this model for one that divides by the number of items.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> Any:
        loader: Any = DataLoader(self.train_dataset, batch_size=self.args.train_batch_size)  # type: ignore[arg-type]
        return self.accelerator.prepare(loader)


class Steps(transformers.TrainerCallback):
    """The parameters after every step."""

    def __init__(self) -> None:
        self.values: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.values.append(trained(kwargs["model"]))


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def arguments(folder: Path, **settings: Any) -> transformers.TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 6, "num_train_epochs": 2, "optim": "sgd",
        "learning_rate": 0.01, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return transformers.TrainingArguments(**{**usual, **settings})


def by_hand(model: Any, guard: SpectralRegularizer, data: Tokens, args: Any) -> list[dict[str, torch.Tensor]]:
    """Steps on loss + strength * guard(model), clipped as a Trainer clips: the task's gradient alone."""
    values = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(values, lr=args.learning_rate)
    if args.optim == "adamw_torch":
        optimizer = torch.optim.AdamW(values, lr=args.learning_rate, weight_decay=0.0)
    found, n = [], args.gradient_accumulation_steps
    batches = list(DataLoader(data, batch_size=args.train_batch_size)) * int(args.num_train_epochs)
    for first in range(0, len(batches), n):
        optimizer.zero_grad()
        for batch in batches[first : first + n]:
            (model(**batch).loss / n).backward()
        if args.max_grad_norm:
            nn.utils.clip_grad_norm_(values, args.max_grad_norm)
        (guard.strength * guard(model)).backward()
        optimizer.step()
        found.append(trained(model))
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipping": {"max_grad_norm": 1.0},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.0},
}


@pytest.mark.parametrize("form", ["layers", "jacobian"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_steps_of_the_trainer_are_those_on_loss_plus_penalty(name: str, form: str, tmp_path: Path) -> None:
    model = adapted()
    guard = SpectralRegularizer.of_old(model, OLD.batch, outputs=logits, k=8, form=form, strength=3.0)
    args = arguments(tmp_path, **SETTINGS[name])
    wanted = by_hand(copy.deepcopy(model), guard, NEW, args)
    unprotected = by_hand(
        copy.deepcopy(model), SpectralRegularizer(model, strength=0.0), NEW, arguments(tmp_path, **SETTINGS[name])
    )
    steps = Steps()
    trainer = InOrder(model=model, args=args, train_dataset=NEW, callbacks=[tangentcl.hf.ForgettingGuard(guard), steps])
    trainer.train()
    assert len(steps.values) == len(wanted) == 8 // args.gradient_accumulation_steps
    for found, expected in zip(steps.values, wanted):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    away = max(float((unprotected[-1][key] - wanted[-1][key]).abs().max()) for key in wanted[-1])
    assert away > 1e-4


def _accuracy(model: Any, data: Tokens) -> float:
    model.eval()
    with torch.no_grad():
        return float((logits(model, data.batch).argmax(dim=1) == data.labels).float().mean())


def test_much_less_is_forgotten_and_the_adapter_is_a_standard_one(tmp_path: Path) -> None:
    model = adapted().float()
    training = {"optim": "adamw_torch", "max_grad_norm": 1.0, "logging_steps": 30}
    first = arguments(tmp_path, num_train_epochs=20, **{**training, "learning_rate": 1e-2})
    transformers.Trainer(model=model, args=first, train_dataset=OLD).train()
    args = arguments(tmp_path, num_train_epochs=60, **{**training, "learning_rate": 3e-3})
    assert _accuracy(model, OLD) == 1.0
    guard = SpectralRegularizer.of_old(model, OLD.batch, outputs=logits, strength=5.0)
    bare = copy.deepcopy(model)
    before = logits(model, OLD.batch).detach()

    transformers.Trainer(model=bare, args=args, train_dataset=NEW).train()
    trainer = transformers.Trainer(model=model, args=args, train_dataset=NEW)
    trainer.add_callback(tangentcl.hf.ForgettingGuard(guard))
    trainer.train()
    assert _accuracy(bare, NEW) == 1.0
    assert _accuracy(model, NEW) > 0.9
    assert _accuracy(bare, OLD) < 0.2
    assert _accuracy(model, OLD) > 0.8
    drifts = [float((logits(m, OLD.batch) - before).square().mean()) for m in (model, bare)]
    assert drifts[0] < drifts[1] / 4

    penalties = [entry["drift_penalty"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(penalties) == 8
    assert all(0.0 < penalty < 100.0 for penalty in penalties)

    trainer.save_model(str(tmp_path / "adapter"))
    read = peft.PeftModel.from_pretrained(bert(), str(tmp_path / "adapter"))
    read.eval()
    torch.testing.assert_close(logits(read, OLD.batch), logits(model, OLD.batch), rtol=1e-5, atol=1e-5)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in key or "classifier" in key for key in file.keys())  # noqa: SIM118


def test_a_guard_outlives_its_session(tmp_path: Path) -> None:
    model = adapted()
    guard = SpectralRegularizer.of_old(model, OLD.batch, outputs=logits, k=8, strength=0.5)
    guard.save(tmp_path / "guard.safetensors")
    other = adapted()
    for p in other.parameters():
        p.data.add_(0.01 * torch.randn_like(p))
    loaded = SpectralRegularizer.load(tmp_path / "guard.safetensors", other)
    torch.testing.assert_close(loaded(other), guard(other), rtol=0, atol=0)
    args = arguments(tmp_path)
    wanted = by_hand(copy.deepcopy(other), guard, NEW, args)
    InOrder(model=other, args=args, train_dataset=NEW, callbacks=[tangentcl.hf.ForgettingGuard(loaded)]).train()
    torch.testing.assert_close(trained(other), wanted[-1], rtol=1e-8, atol=1e-11)


def _begin(guard: SpectralRegularizer, model: nn.Module, tmp_path: Path, **settings: Any) -> None:
    args = SimpleNamespace(deepspeed=None, fsdp=[], fp16=False, max_grad_norm=1.0)
    vars(args).update(settings)
    callback = tangentcl.hf.ForgettingGuard(guard)
    kind = SimpleNamespace(accelerator_state=SimpleNamespace(distributed_type=settings.pop("kind", "NO")))
    callback.on_train_begin(args, None, None, model=model, optimizer=kind)  # type: ignore[arg-type]


def test_what_cannot_be_protected_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    guard = SpectralRegularizer(model, head="")
    _begin(guard, model, tmp_path)
    _begin(guard, model, tmp_path, fp16=True)
    for settings in ({"deepspeed": "x.json"}, {"fsdp": ["full_shard"]}, {"kind": "FSDP"}, {"kind": "DEEPSPEED"}):
        with pytest.raises(ConfigError, match="DDP"):
            _begin(guard, model, tmp_path, **settings)
    with pytest.raises(ConfigError, match="max_grad_norm"):
        _begin(guard, model, tmp_path, fp16=True, max_grad_norm=0.0)
    with pytest.raises(ConfigError, match="SpectralRegularizer"):
        tangentcl.hf.ForgettingGuard(model)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"'0.weight', '1.bias'.* without them"):
        _begin(guard, nn.Sequential(model, nn.Linear(3, 2)), tmp_path)
    with pytest.raises(ModelError, match=r"\[5, 4\], and \[3, 4\].*guard.hold"):
        _begin(guard, nn.Linear(4, 5), tmp_path)
    with pytest.raises(ModelError, match="Make another guard"):
        _begin(guard, nn.Linear(6, 3), tmp_path)
    model.bias.requires_grad_(False)
    with pytest.raises(ModelError, match=r"guard is of \['bias'\]"):
        _begin(guard, model, tmp_path)


def test_a_parameter_without_a_gradient_gets_the_penaltys() -> None:
    model = nn.Linear(4, 3)
    guard = SpectralRegularizer.of_old(model, torch.randn(9, 4), strength=2.0)
    model.weight.data.add_(1.0)
    (guard.strength * guard(model)).backward()
    assert model.weight.grad is not None
    wanted = model.weight.grad.clone()
    model.zero_grad()
    penalty = tangentcl.hf.add_gradient(guard, model)
    torch.testing.assert_close(model.weight.grad, wanted)
    torch.testing.assert_close(penalty, (guard.strength * guard(model)).detach())
    tangentcl.hf.add_gradient(guard, model)
    torch.testing.assert_close(model.weight.grad, 2 * wanted)


def test_the_module_is_loaded_when_it_is_used() -> None:
    assert "hf" in dir(tangentcl)
    assert tangentcl.hf.ForgettingGuard.__module__ == "tangentcl.hf"
