"""Load a trained network for MLflow from two files of its folder: training.json and weights.safetensors.

Nothing is pickled and no code is copied, so `mlflow.pyfunc.load_model(uri)` needs this package, and the plugins that
the network needs.

    network = mlflow.pyfunc.load_model("models:/cifar10@best")
    logits = network.predict(images)        # NumPy, [N, C, H, W] with pixels in [0, 1] -> [N, classes], float64
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from harness.config.plugins import load_for
from harness.evaluation.network import load_network
from harness.storage import folder

_BATCH_SIZE = 200


class Network:
    """A trained network for NumPy arrays, in float64 on the CPU."""

    def __init__(self, model: nn.Module):
        self.model = model

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the logits [N, classes] of images [N, C, H, W] with pixels in [0, 1]. Raises ValueError for others."""
        x = torch.from_numpy(np.array(images, dtype=np.float64))
        if x.ndim != 4 or not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"images must be [N, C, H, W] with pixels in [0, 1]; their shape is {tuple(x.shape)}")
        with torch.no_grad():
            return torch.cat([self.model(batch) for batch in x.split(_BATCH_SIZE)]).numpy()


def _load_pyfunc(path: str) -> Network:
    """Return the network from the folder with the two files. MLflow calls this."""
    config = folder.read_training(Path(path) / folder.TRAINING).config
    load_for(config)
    return Network(load_network(config, Path(path) / folder.WEIGHTS))
