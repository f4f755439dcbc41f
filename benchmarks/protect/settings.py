"""The settings that methods are compared on: an experiment file each, and what memory is worth there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILES = Path(__file__).resolve().parents[2] / "experiments" / "protect"
SKETCH_ROWS = 64  # of the spectral sketch of each layer
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Setting:
    """A stream, a backbone and a plan.

    Attributes:
        name: of the setting on the command line.
        file: the experiment file.
        adapts: "lora" where the backbone is adapted, "head" where a head is trained on its features.
        tuning_tasks: the strength of a method is chosen on so many first tasks of the stream.
        n_classes, n_train: classes and training samples of the whole stream; a memory cannot hold more.
        sample_bytes: of one stored sample in the form it is read in, with its label.
        n_layers, width: layers that the spectral sketch covers, and width of their inputs.
    """

    name: str
    file: Path
    adapts: str
    tuning_tasks: int
    n_classes: int
    n_train: int
    sample_bytes: int
    n_layers: int
    width: int

    @property
    def sketch_bytes(self) -> int:
        """What the spectral method keeps of the past: float32 [rows, width] for each layer, and the mass it shed."""
        return self.n_layers * (SKETCH_ROWS * self.width + 1) * FLOAT

    def budget(self, *, logits: bool = False) -> int:
        """Samples, perhaps with a float32 logit of each class, that fill the memory of the sketch.

        Texts are so small that the whole stream would fit: of them one for each class is kept.
        """
        if self.sample_bytes == TEXT:
            return self.n_classes
        each = self.sample_bytes + (self.n_classes * FLOAT if logits else 0)
        return max(1, min(self.n_train, round(self.sketch_bytes / each)))


LABEL = 2  # bytes: more than 256 classes would fit
TEXT = 40 + LABEL  # a CLINC150 text has 39.9 bytes in the mean over the 15,000 of the training split
PICTURE = 32 * 32 * 3 + LABEL  # CIFAR-10: three bytes a pixel
DRAWING = -(-105 * 105 // 8) + LABEL  # Omniglot: one bit a pixel

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        # 150 intents of 8 texts; queries and values of 6 blocks of width 384:
        # 12 layers x (64 x 384 + 1) x 4 bytes = 1,179,696 bytes, which is 28,088 texts, more than there are.
        Setting("clinc150_lora", FILES / "clinc150_lora.toml", "lora", 4, 150, 150 * 8, TEXT, 12, 384),
        # 45 intents of 15 texts, the same layers; chosen on all three tasks.
        Setting("clinc150_three", FILES / "clinc150_three.toml", "lora", 3, 45, 45 * 15, TEXT, 12, 384),
        # 150 intents of 100 texts; the head's inputs: (64 x 384 + 1) x 4 bytes = 98,308 bytes, which is 2,341 texts.
        Setting("clinc150_head", FILES / "clinc150_head.toml", "head", 4, 150, 150 * 100, TEXT, 1, 384),
        # 10 classes of 100 images; queries and values of 6 blocks of width 192:
        # 12 x (64 x 192 + 1) x 4 bytes = 589,872 bytes, which is 192 images; with
        # logits 189. Three of five tasks are enough to tune on.
        Setting("cifar10", FILES / "cifar10.toml", "lora", 3, 10, 10 * 100, PICTURE, 12, 192),
        # 136 characters of 8 drawings; 589,872 bytes are 427 drawings; with logits 306.
        Setting("omniglot", FILES / "omniglot.toml", "lora", 4, 136, 136 * 8, DRAWING, 12, 192),
    )
}
