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
from harness.entries.manifest import EntryNetwork, Manifest
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.sweep.checkpoint_settings import TRAINED_ELSEWHERE
from harness.sweep.trial_config import TrialConfig

NETWORK = "network."
"""What the names of steps begin with that come from an ONNX file."""
_STAGES = ("ibp", "crown-ibp")
_AGREEMENT = 1e-4  # of logits of float32 and float64, relative to 1 + the largest
_BATCH = 100  # images
_NOT_RELU = {"absolute", "clamp", "fixed_point", "hardtanh", "leaky_relu", "relu6", "sigmoid", "sign", "tanh"}


@dataclass(frozen=True)
class LoadedNetwork:
    """A network of an entry.

    prepared: the network from pixels in [0, 1] to logits. run: the same from float32 [B, C, H, W], by the runtime that
    predictions are those of; None if that is torch in float64.
    """

    prepared: PreparedNetwork
    run: Callable[[Tensor], np.ndarray] | None

    @property
    def parameters(self) -> int:
        """The number of its parameters."""
        return sum(parameter.numel() for parameter in self.prepared.model.parameters())

    @torch.no_grad()
    def predictions(self, images: Tensor) -> np.ndarray:
        """Return the predictions [N] of images uint8 [N, C, H, W].

        Raises InputError if the runtime's logits are not those of the network in float64: proofs are about that one.
        """
        parts = []
        for part in images.split(_BATCH):
            logits = self.prepared.model(part.double() / 255).numpy()
            if self.run is not None:
                exact, logits = logits, self.run((part.double() / 255).float())
                difference, size = np.abs(exact - logits).max(), 1 + np.abs(exact).max()
                if not difference <= _AGREEMENT * size:
                    found = f"logits of float32 and of float64 that differ by {difference:.3g}"
                    raise InputError(f"found {found}, allowed: {_AGREEMENT * size:.3g}, as proofs are in real numbers")
            if not np.isfinite(logits).all():
                raise InputError("found logits that are not finite")
            parts.append(logits.argmax(1))
        return np.concatenate(parts)


def load_entry_network(manifest: Manifest, entry: EntryNetwork, files: Path) -> LoadedNetwork:
    """Return a network of an entry. files: the folder with its files. Raises InputError or OnnxError."""
    path, architecture = files / entry.network, manifest.architecture
    if architecture is not None:
        config = TrialConfig(
            "entry", "full", manifest.dataset, manifest.radius, 0, architecture.model, TRAINED_ELSEWHERE,
            architecture.options, width=architecture.width,
        )  # fmt: skip
        return LoadedNetwork(prepare_network(load_network(config, path), _STAGES), None)
    model = build("onnx", manifest.dataset, file=str(path))
    given, channels = manifest.normalisation, DATASETS[manifest.dataset].shape[0]
    for name, default in (("mean", 0.0), ("std", 1.0)):
        buffer = getattr(model.normalize, name)
        buffer.copy_(torch.tensor(getattr(given, name, [default] * channels)).view_as(buffer))
    front = copy.deepcopy(nn.Sequential(*[layer for name, layer in model.named_children() if name != "network"]))
    run = load_content(read_content(path), path).run
    return LoadedNetwork(prepare_network(model.double().eval(), _STAGES), lambda x: run(front(x).numpy()))


def why_not_of_kind(network: LoadedNetwork, kind: str) -> str:
    """Return why a network is not of the kind that its manifest says, or "". Lipschitz networks are not recognised."""
    operators = {step.record.name for step in network.prepared.program.steps if step.record is not None}
    if kind == "relu" and (others := sorted(operators & _NOT_RELU)):
        return f"network_kind: found 'relu' of a network with {', '.join(others)}, allowed: another kind"
    return ""
