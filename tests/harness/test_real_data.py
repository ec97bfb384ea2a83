"""The real data sets, where CERDEQ_DATA says they are."""

import os
from pathlib import Path

import pytest
import torch

from baselines.datasets import DATASETS
from harness.data import layouts, load

REAL = os.environ.get("CERDEQ_DATA")


def real(name):
    """The real data set, or a skip that says why there is none."""
    if not REAL:
        pytest.skip("CERDEQ_DATA is not set")
    root = Path(REAL).absolute()
    if layouts.find(DATASETS[name], root) is None:
        pytest.skip(f"CERDEQ_DATA has no {DATASETS[name].title}")
    return load(name, root)


def assert_channel_means(images, means, tolerance):
    computed = images.sum((0, 2, 3), dtype=torch.int64) / images[:, 0].numel() / 255
    torch.testing.assert_close(computed, torch.tensor(means), atol=tolerance, rtol=0)


def test_the_real_cifar10_has_its_published_labels_and_means():
    data = real("cifar10")
    if data.train.is_complete:
        assert data.train.labels.bincount().tolist() == [5000] * 10
        assert_channel_means(data.train.images, data.info.mean, 1e-4)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.labels[:20].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6]


def test_the_real_mnist_has_its_published_labels_and_means():
    data = real("mnist")
    assert len(data.training_images()) == 60_000 and len(data.test_images()) == 10_000
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert_channel_means(data.train.images, [0.1307], 1e-4)


@pytest.mark.slow
def test_the_real_tiny_imagenet_has_its_published_counts_and_means():
    data = real("tiny-imagenet")
    assert data.test.labels.bincount().tolist() == [50] * 200
    assert_channel_means(data.train.images[:5000], data.info.mean, 5e-3)
    if data.train.is_complete:
        assert data.train.labels.bincount().tolist() == [500] * 200
    assert len(data.training_images(5000).labels.unique()) == 200
