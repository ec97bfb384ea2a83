"""Images with the adversarial examples of a network."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.attacks.counterexamples import decode
from harness.data import Data, load
from harness.errors import InputError
from harness.evaluation.certification import evaluation_images
from harness.evaluation.network import load_network
from harness.figures.section_data import SectionData
from harness.figures.style import panels
from harness.storage import folder
from harness.storage.files import DamagedFileError

_MOST = 6


def counterexamples(data: SectionData) -> Figure | None:
    """Adversarial examples of the best row's first network: image, point, and 0.5 + their difference over 2 eps.

    None where there are none, the images are not there, or the trial needs plugins: reading results imports none.
    Raises DamagedFileError where weights or points cannot be read.
    """
    if data.trials.empty:
        return None
    trial_dir = Path(data.trials["trial_dir"].iloc[0])
    if not (trial_dir / folder.COUNTEREXAMPLES).exists():
        return None
    trial = folder.read_trial(trial_dir / folder.TRIAL)
    if trial.config.plugins:
        return None
    try:
        images_of = load(trial.config.dataset, data.data_dir)
    except InputError:
        return None
    try:
        points = load_file(trial_dir / folder.COUNTEREXAMPLES)
        network = load_network(trial.config, trial_dir / folder.WEIGHTS)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DamagedFileError(f"{trial_dir}: {type(error).__name__}: {error}") from error
    if images_of.fingerprint != trial.fingerprint or not points:
        return None
    test = evaluation_images(images_of, trial.config)
    indices = sorted(map(int, points))[:_MOST]
    images = test.images[indices].double() / 255
    adversarial = decode(torch.stack([points[str(index)] for index in indices]), images, trial.config.eps)
    with torch.no_grad():
        predicted = network(adversarial).argmax(1)
    figure, axes = panels(3, len(indices), width=1.25 * len(indices) + 0.6, height=4.4)
    difference = 0.5 + (adversarial - images) / (2 * float(trial.config.eps))
    titles = {"image": images, "adversarial": adversarial, "difference": difference}
    for row, (title, pictures) in enumerate(titles.items()):
        for column, picture in enumerate(pictures):
            panel = axes[row * len(indices) + column]
            panel.imshow(np.squeeze(picture.permute(1, 2, 0).numpy()), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
        axes[row * len(indices)].set_ylabel(title)
    for column, (index, wrong) in enumerate(zip(indices, predicted.tolist(), strict=True)):
        axes[column].set_title(f"{index}: {_name(images_of, int(test.labels[index]))}", fontsize=8)
        axes[len(indices) + column].set_title(f"{_name(images_of, wrong)}", fontsize=8)
    return figure


def _name(data: Data, label: int) -> str:
    return data.info.class_names[label] if data.info.class_names else str(label)
