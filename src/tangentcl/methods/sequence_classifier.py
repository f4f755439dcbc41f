"""A classifier of Hugging Face transformers that was trained elsewhere, as a learner that goes on."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from tangentcl.data import Task
from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.methods.method import Batch, Method
from tangentcl.nn.backbone import train_where_trainable
from tangentcl.nn.hf_classifier import HFClassifier, classifier_layer, extend_rows

TUNE = ("full", "head", "adapter")


class SequenceClassifier(Method):
    """Cross-entropy over all classes, from the weights that a folder holds.

    Args:
        classifier: from `tangentcl.nn.hf_classifier.load_classifier`; changed in place.
        tune: what trains: ``"full"`` (everything), ``"head"`` (the last linear layer), ``"adapter"`` (the peft
            adapter and what it saves beside itself). None is "adapter" where there is one, else "full".

    Raises:
        ConfigError: an adapter that is not there, or one that should not be trained. ModelError: ``tune="head"`` for
            an architecture whose logits are not the output of one linear layer.
    """

    def __init__(self, classifier: HFClassifier, *, tune: Literal["full", "head", "adapter"] | None = None) -> None:
        super().__init__()
        self.tune = tune or ("adapter" if classifier.adapter else "full")
        if self.tune not in TUNE:
            raise ConfigError(f"tune must be one of {', '.join(TUNE)}, got {tune!r}.{nearest(str(tune), TUNE)}")
        if (self.tune == "adapter") != classifier.adapter:
            has = "has a peft adapter, which is what trains" if classifier.adapter else "has no peft adapter to train"
            raise ConfigError(f"tune={self.tune!r}: the folder {has}. Leave tune out.")
        self.model = classifier.model
        self.n_outputs = len(classifier.class_names)
        self._probe = classifier.transform.collate(["one", "two words"])
        try:
            self._head = [classifier_layer(self.model, self._probe)]  # in a list: no second name for its parameters
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{type(self.model).__name__} does not map two short texts to logits: {error}") from error
        if self.tune == "head":
            if self._head[0] is None:
                raise ModelError(f"the logits of {type(self.model).__name__} are not the output of one linear layer.")
            self.model.requires_grad_(False)
            self._head[0].requires_grad_(True)

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the classifier: deviation 0.02, bias 0.

        Raises:
            ModelError: the classifier is not one linear layer, or its rows would not be trained.
        """
        if task.n_seen == self.n_outputs:
            return
        head, name = self._head[0], type(self.model).__name__
        if head is None:
            raise ModelError(
                f"{task.n_seen - self.n_outputs} classes are new to the model, but the logits of {name} are not the "
                "output of one linear layer, so no row can be added. Add them to the model yourself and save it again."
            )
        if not head.weight.requires_grad:
            raise ModelError(
                f"{task.n_seen - self.n_outputs} classes are new to the model, but its classifier is frozen, so their "
                "rows would stay random. Name the classifier in the adapter's modules_to_save."
            )
        extend_rows(head, task.n_seen)
        self.n_outputs = task.n_seen

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` over all classes."""
        return {"cross_entropy": F.cross_entropy(self.predict(x).float(), y)}

    def end_task(self, task: Task) -> None:
        """Nothing is consolidated."""

    def predict(self, x: Batch) -> Tensor:
        """Logits, ``[B, n_seen]``."""
        logits: Tensor = self.model(**x).logits
        return logits

    def train(self, mode: bool = True) -> SequenceClassifier:
        """Training mode where everything inside trains, as in `Backbone.train`; frozen layers drop nothing."""
        super().train(mode)
        if mode:
            train_where_trainable(self.model)
        return self
