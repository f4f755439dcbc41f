"""Your own images, held in memory, as a stream of tasks; LoRA forgets, class means do not."""

import numpy as np

from tangentcl import NCM, Finetune, TrainingPlan, backbone, class_incremental, from_arrays, run_stream

# Any uint8 array [n, height, width] or [n, height, width, 3] will do; here: six kinds of coloured stripes.
rng = np.random.default_rng(0)
labels = np.repeat(np.arange(6), 40)  # [n]
waves = np.sin(np.arange(32)[None, :] * (labels[:, None] + 1) / 3)  # [n, 32]
images = (128 + 80 * waves[:, None, :, None] + rng.normal(0, 20, (240, 32, 32, 3))).clip(0, 255).astype(np.uint8)

# Three lines: samples and labels, a quarter of each class held out for testing, three tasks of two classes.
source = from_arrays(images, labels, test_share=0.25)
stream = class_incremental(source, n_tasks=3)
for learner in (Finetune(backbone("bundled"), rank=4), NCM(backbone("bundled"))):
    result = run_stream(learner, stream, TrainingPlan(epochs=4, batch_size=16, lr=5e-3))
    summary = result.summary()
    print(f"\n{type(learner).__name__}: accuracy on each task (columns) after each task (rows)")
    print(result.matrix.round(2))
    print(f"average accuracy {summary['average_accuracy']:.2f}, forgetting {summary['ffm']:.2f}")
