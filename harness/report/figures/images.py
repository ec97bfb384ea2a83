"""Images with the adversarial examples of a network."""

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load as load_tensors

from harness.attacks.counterexamples import point_of
from harness.common.errors import InputError
from harness.data import load
from harness.evaluation.network import load_network
from harness.evaluation.ranges import evaluated_images
from harness.report.figures.section_data import SectionData
from harness.report.figures.style import panels
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file

_MOST = 6


def counterexamples(data: SectionData) -> Figure | None:
    """The best row, first seed: image and label, a point within eps, and their difference divided by eps.

    The network provably gets the point wrong; its prediction stands above. A difference of 0 is grey.
    """
    evaluation_dir = data.trials["evaluation_dir"].iloc[0]
    network_dir = folder.network_of(evaluation_dir)
    training = folder.read_training(network_dir / folder.TRAINING)
    evaluation, path = folder.read_evaluation(evaluation_dir).config, evaluation_dir / folder.COUNTEREXAMPLES
    if not path.exists() or training.config.plugins:  # reading results imports no plugins
        return None
    try:
        dataset = load(training.config.data_source, data.data_dir)
    except InputError:  # the images are not here
        return None
    if dataset.fingerprint != training.fingerprint:
        return None
    test = evaluated_images(dataset, training.config.validation_images, evaluation)
    try:
        points = parse_file(path, load_tensors)
        network = load_network(training.config, network_dir / folder.WEIGHTS)
        indices = sorted(map(int, points))[:_MOST]
        images = test.images[indices].double() / 255
        eps = evaluation.eps
        stored = [point_of(points[str(index)], x, eps) for index, x in zip(indices, images, strict=True)]
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise DamagedFileError(f"{evaluation_dir}: {type(error).__name__}: {error}") from error
    if not indices:
        return None
    adversarial = torch.stack(stored)
    with torch.no_grad():
        predicted = network(adversarial).argmax(1)
    difference = 0.5 + (adversarial - images) / (2 * float(evaluation.eps))
    rows = {"image": images, "adversarial": adversarial, "difference": difference}
    count = len(indices)
    figure, axes = panels(3 * count, count, width=1.25 * count + 0.6, height=4.4)
    for panel, picture in zip(axes, torch.cat(list(rows.values())), strict=True):
        panel.imshow(np.squeeze(picture.permute(1, 2, 0).numpy()), cmap="gray", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])
        panel.grid(False)
    for panel, title in zip(axes[::count], rows, strict=True):
        panel.set_ylabel(title)
    class_names = dataset.info.class_names or [str(label) for label in range(dataset.info.classes)]
    for number, (index, prediction) in enumerate(zip(indices, predicted.tolist(), strict=True)):
        axes[number].set_title(f"{index}: {class_names[int(test.labels[index])]}", fontsize=8)
        axes[count + number].set_title(class_names[prediction], fontsize=8)
    return figure
