"""Images with the points of their balls that break a network."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.attacks.counterexamples import decode
from harness.data import Data, load
from harness.errors import InputError
from harness.evaluation.certification import judged_images
from harness.evaluation.network import load_network
from harness.figures.shown import Shown
from harness.figures.style import panels
from harness.storage import folder
from harness.storage.files import DamagedFileError

_MOST = 6


def counterexamples(shown: Shown) -> Figure | None:
    """Broken images of the best row's first network: the image, the point that breaks it, and 0.5 + their difference
    over 2 eps.

    None where none is broken, the images are not at hand, or there are plugins: who reads results imports none.
    Raises DamagedFileError where weights or points cannot be read.
    """
    if shown.trials.empty or not (path := Path(shown.trials["folder"].iloc[0]) / folder.COUNTEREXAMPLES).exists():
        return None
    trial = folder.read_trial(path.parent / folder.TRIAL)
    if trial.config.plugins:
        return None
    try:
        data = load(trial.config.dataset, shown.data_dir)
    except InputError:
        return None
    try:
        found = sorted((int(index), k) for index, k in load_file(path).items())[:_MOST]
        network = load_network(trial.config, path.parent / folder.WEIGHTS)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DamagedFileError(f"{path.parent}: {type(error).__name__}: {error}") from error
    if data.fingerprint != trial.fingerprint or not found:
        return None
    test = judged_images(data, trial.config)
    which = torch.tensor([index for index, _ in found])
    images = test.images[which].double() / 255
    points = decode(torch.stack([k for _, k in found]), images, trial.config.eps)
    with torch.no_grad():
        predicted = network(points).argmax(1)
    figure, axes = panels(3, len(found), width=1.25 * len(found) + 0.6, height=4.4)
    difference = 0.5 + (points - images) / (2 * float(trial.config.eps))
    for row, (title, pictures) in enumerate((("image", images), ("broken", points), ("difference", difference))):
        for column, picture in enumerate(pictures):
            place = axes[row * len(found) + column]
            place.imshow(np.squeeze(picture.permute(1, 2, 0).numpy()), cmap="gray", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
            place.grid(False)
        axes[row * len(found)].set_ylabel(title)
    for column, (index, wrong) in enumerate(zip(which.tolist(), predicted.tolist(), strict=True)):
        axes[column].set_title(f"{index}: {_name(data, int(test.labels[index]))}", fontsize=8)
        axes[len(found) + column].set_title(f"{_name(data, wrong)}", fontsize=8)
    return figure


def _name(data: Data, label: int) -> str:
    return data.info.class_names[label] if data.info.class_names else str(label)
