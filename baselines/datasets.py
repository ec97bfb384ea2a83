"""The data sets, one entry each: everything about a data set except its files.

Means and deviations are those of the certified-training literature; CIFAR-10's and Tiny ImageNet's deviations are
means over images of each image's own, smaller than the deviation over all pixels.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """A data set, without its files.

    name, title: its name in sweep files and in tables.
    shape: (channels, height, width).
    mean, std: per channel, of pixels in [0, 1].
    train_size, test_size: numbers of images.
    flip, crop_padding: training augmentation; images are padded by repeating the edge.
    folders: where the files may lie below the data directory, besides the data directory itself.
    class_names: by label, where they say more than the label does.
    image_column, test_split: names of the image and of the test split in Hugging Face-style Parquet.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int
    test_size: int
    flip: bool = False
    crop_padding: int = 0
    folders: tuple[str, ...] = ()
    image_column: str = "image"
    test_split: str = "test"
    class_names: tuple[str, ...] = ()


DATASETS: dict[str, Dataset] = {}
"""Every data set by its name."""


def register(dataset: Dataset) -> None:
    """Add a data set. Raises ValueError where there is one of this name."""
    if dataset.name in DATASETS:
        raise ValueError(f"data set {dataset.name!r} is registered twice")
    DATASETS[dataset.name] = dataset


_DATASETS = (
    Dataset(
        "cifar10", "CIFAR-10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 50_000, 10_000,
        flip=True, crop_padding=2, folders=("cifar10", "cifar10/plain_text"), image_column="img",
        class_names=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ),
    ),
    Dataset("mnist", "MNIST", (1, 28, 28), 10, (0.0,), (1.0,), 60_000, 10_000, folders=("mnist",)),
    Dataset(
        "fashion-mnist", "Fashion-MNIST", (1, 28, 28), 10, (0.2861,), (0.3530,), 60_000, 10_000,
        folders=("fashion-mnist", "fashion-mnist/fashion_mnist"),
        class_names=(
            "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
        ),
    ),
    Dataset(
        "svhn", "SVHN", (3, 32, 32), 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2011, 0.1970), 73_257, 26_032,
        folders=("svhn", "svhn/cropped_digits"),
    ),
    Dataset(
        "tiny-imagenet", "Tiny ImageNet", (3, 64, 64), 200, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262),
        100_000, 10_000, flip=True, crop_padding=4,
        folders=("tiny-imagenet", "tiny-imagenet/data", "tiny-imagenet-200"), test_split="valid",
    ),
    Dataset("digits", "digits", (1, 8, 8), 10, (0.3053,), (0.3760,), 1_437, 360),
)  # fmt: skip

for _dataset in _DATASETS:
    register(_dataset)
