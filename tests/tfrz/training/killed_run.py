"""Run as a process: trains the toy model into a folder, and dies at a step if told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from tests.tfrz.training.toy import ToyTask, toy_sets
from tfrz.training import fit as loop
from tfrz.training.config import TrainerConfig

CONFIG = TrainerConfig(
    epochs=3,
    batch_size=32,
    learning_rate=0.01,
    learning_rate_schedule="cosine",
    evaluations_per_epoch=2,
    steps_per_call=4,
    checkpoint_every_steps=7,
    seed=5,
    tensorboard=False,
)


def main(directory: str, die_at: int) -> None:
    """Trains; kills its own process, without any clean-up, once `die_at` steps are done."""
    task = ToyTask()
    train, validation = toy_sets()
    model = loop.build_model(task.build, CONFIG)
    if die_at:
        run = loop._Loop.run
        done = [0]

        def dying(self, iterator, count):
            if done[0] >= die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done[0] += count
            return run(self, iterator, count)

        loop._Loop.run = dying
    result = loop.fit(model, task, train, validation, CONFIG, Path(directory), progress=False)
    np.savez(Path(directory) / "weights.npz", *model.get_weights())
    print(result.resumed_from)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
