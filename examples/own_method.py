"""A method in one file: LoRA on the first task, from then on nearest class mean on the adapted features."""

from tangentcl import Finetune, Method, TrainingPlan, backbone, class_incremental, load, run_stream
from tangentcl.nn import PrototypeHead, extract_features


class FirstSession(Method):
    """First-session adaptation (Panos et al., ICCV 2023), with class means in place of their discriminant."""

    def __init__(self, backbone, *, rank=8):
        super().__init__()
        self.learner, self.means = Finetune(backbone, rank=rank), PrototypeHead(backbone.width)

    def begin_task(self, task):
        self.means.grow(task.n_seen)
        self.adapts = task.index == 0
        if self.adapts:
            self.learner.begin_task(task)
        else:
            self.learner.requires_grad_(False)  # nothing trains any more: the trainer goes straight to end_task

    def training_loss(self, x, y):
        return self.learner.training_loss(x, y) if self.adapts else {}

    def end_task(self, task):
        self.means.update(*extract_features(self.learner.backbone, task.train_eval))

    def predict(self, x):
        return self.means(self.learner.backbone(x))  # [B, n_seen]


if __name__ == "__main__":
    stream = class_incremental(load("digits"), n_tasks=5, train_per_class=10, test_per_class=10)
    result = run_stream(FirstSession(backbone("bundled"), rank=4), stream, TrainingPlan(epochs=2))
    print(result.matrix.round(2))
