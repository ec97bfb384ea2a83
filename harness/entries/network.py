"""The network of an entry, and what its own runtime predicts."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from baselines import DATASETS, build
from cerdeq.onnx import load_content, read_content
from harness.common.errors import InputError
from harness.config.training import Training
from harness.entries.manifest import EntryNetwork, Manifest
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.settings import Recipe

NETWORK = "network."
"""What the names of steps begin with that come from an ONNX file."""
_STAGES = ("ibp", "crown-ibp")
_AGREEMENT = 1e-3  # of margins of float32 and float64, relative to their size and their median
_FEW = 1000  # one image of so many may have another class in float64: its largest logits are nearly equal
_BATCH = 100  # images


@dataclass(frozen=True)
class LoadedNetwork:
    """A network of an entry.

    prepared: the network from pixels in [0, 1] to logits. run: the same from float32 [B, C, H, W], by the runtime that
    predictions are those of, one image at a time; None if that is torch in float64.
    """

    prepared: PreparedNetwork
    run: Callable[[Tensor], np.ndarray] | None = None

    @property
    def parameters(self) -> int:
        """The number of its parameters."""
        return sum(parameter.numel() for parameter in self.prepared.model.parameters())

    def predict(self, images: Tensor) -> np.ndarray:
        """Return the predictions [N] of images uint8 [N, C, H, W].

        Raises InputError as `logits` does, and for more than a thousandth of images that have another class in float64:
        proofs are about that network.
        """
        parts = [self.logits(part.double() / 255) for part in images.split(_BATCH)]
        predicted, exact = np.concatenate([run.argmax(1) for run, _ in parts]), np.concatenate([e for _, e in parts])
        others = np.flatnonzero(predicted != exact.argmax(1))
        if len(others) > len(images) // _FEW:
            found = f"found {len(others)} images with another class in float64 than by onnxruntime, such as {others[0]}"
            raise InputError(f"{found}, allowed: {len(images) // _FEW}, as proofs are in real numbers")
        return predicted

    @torch.no_grad()
    def logits(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the runtime's logits [B, K] of inputs in float64 [B, C, H, W], and those in float64.

        Raises InputError for logits that are not finite, and for margins that are not the same up to rounding.
        """
        if self.run is None:
            logits = exact = self.prepared.model(x).numpy()
        else:
            logits, exact = self.run(x.float()), self.prepared.model(x.float().double()).numpy()
        if not (np.isfinite(logits).all() and np.isfinite(exact).all()):
            raise InputError("found logits that are not finite")
        winner = logits.argmax(1)[:, None]
        margins, others = (np.take_along_axis(each, winner, 1) - each for each in (exact, logits))
        allowed = _AGREEMENT * (np.abs(margins) + np.median(np.abs(margins)))
        if (excess := np.abs(margins - others) - allowed).max() > 0:
            worst = np.unravel_index(excess.argmax(), excess.shape)
            found = f"found a margin of {others[worst]:.6g} by onnxruntime that is {margins[worst]:.6g} in float64"
            raise InputError(f"{found}, allowed: the same up to rounding, as proofs are in real numbers")
        return logits, exact


def load_entry_network(manifest: Manifest, entry: EntryNetwork, files: Path) -> LoadedNetwork:
    """Return a network of an entry. files: the folder with its files. Raises InputError or OnnxError."""
    path, architecture = files / entry.network, manifest.architecture
    classes = DATASETS[manifest.dataset].classes
    if architecture is not None:
        config = Training(
            dataset=manifest.dataset, seed=0, model=architecture.model, method="entry", options=architecture.options,
            width=architecture.width, train=Recipe(eps=manifest.radius),
        )  # fmt: skip
        return LoadedNetwork(prepare_network(load_network(config, path), _STAGES, classes))
    model = build("onnx", manifest.dataset, file=str(path))
    normalisation, channels = manifest.normalisation, DATASETS[manifest.dataset].shape[0]
    for name, default in (("mean", 0.0), ("std", 1.0)):
        buffer = getattr(model.normalize, name)
        buffer.copy_(torch.tensor(getattr(normalisation, name, [default] * channels)).view_as(buffer))
    front = copy.deepcopy(nn.Sequential(*[layer for name, layer in model.named_children() if name != "network"]))
    run = load_content(read_content(path), path).run
    return LoadedNetwork(prepare_network(model.double().eval(), _STAGES, classes), lambda x: run(front(x).numpy()))
