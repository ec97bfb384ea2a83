"""Images for training, validation and test; missing shards are reported."""

import numpy as np
import pytest
from fake_data import PARQUET, check_arrays, fake_parquet, pixels, write_parquet

from harness.common.errors import InputError
from harness.data import load


def test_digits_are_split_by_every_fifth_and_scaled_to_bytes():
    from sklearn.datasets import load_digits

    data = load("digits", "nowhere")
    values, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(data.test.labels, labels[::5])
    np.testing.assert_array_equal(data.train.labels[:4], labels[1:5])
    assert data.test.images[0].flatten().tolist() == [round(value * 255 / 16) for value in values[0]]
    assert data.summary()["complete"] and (len(data.train), len(data.test)) == (1437, 360)


def test_an_incomplete_training_split_needs_a_number(small, tmp_path):
    images, *_ = fake_parquet(tmp_path, shards=1)
    data = load("cifar10", tmp_path)
    np.testing.assert_array_equal(data.train.images, images[:10])
    assert (data.train.shards, data.train.total, data.train.is_complete, data.test.is_complete) == (1, 2, False, True)
    assert data.summary()["complete"] is False
    message = r"train_images: found None, allowed: 1 to 10; .*1 of 2 train shards found, 10 of 20 images"
    with pytest.raises(InputError, match=message):
        data.training_images(None)
    with pytest.raises(
        InputError, match=r"train_images: found 8, allowed: 1 to 7; .*10 of 20 images, 3 of them held out"
    ):
        data.training_images(8, validation=3)
    assert len(data.training_images(10)) == 10
    assert len(data.test_images()) == 6
    arrays = fake_parquet(tmp_path)
    complete = load("cifar10", tmp_path)
    check_arrays(complete, arrays)
    assert complete.summary()["complete"] and complete.fingerprint != data.fingerprint


def test_an_incomplete_test_split_needs_a_number(small, tmp_path):
    fake_parquet(tmp_path)
    folder = tmp_path / PARQUET
    write_parquet(folder / "test-00001-of-00002.parquet", *(array[:3] for array in pixels("cifar10", 6, seed=1)))
    with pytest.raises(InputError, match=r"found test-00000-of-00001\.parquet, test-00001-of-00002\.parquet, allowed"):
        load("cifar10", tmp_path)
    (folder / "test-00000-of-00001.parquet").unlink()
    data = load("cifar10", tmp_path)
    with pytest.raises(
        InputError, match=r"evaluation.test_images: found None, allowed: 1 to 3; .*1 of 2 test shards found, 3 of 6"
    ):
        data.test_images()
    assert len(data.test_images(2)) == 2
    (folder / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"found one split without the other, allowed: .* test-00000-of-0000N"):
        load("cifar10", tmp_path)


def test_training_and_validation_images_do_not_overlap(small, tmp_path):
    images, labels, *_ = fake_parquet(tmp_path)
    data = load("cifar10", tmp_path)
    train, held_out = data.training_images(None, validation=5), data.held_out_images(5)
    np.testing.assert_array_equal(train.images, images[:15])
    np.testing.assert_array_equal(held_out.images, images[15:])
    np.testing.assert_array_equal(held_out.labels, labels[15:])
    assert data.held_out_images(0) is None
    np.testing.assert_array_equal(data.evaluated_images(5, None).labels, labels[15:])
    np.testing.assert_array_equal(data.evaluated_images(5, 2).labels, labels[15:17])
    np.testing.assert_array_equal(data.evaluated_images(0, 2).labels, data.test_images().labels[:2])
    with pytest.raises(InputError, match="images: found 6, allowed: at most the 5 held out"):
        data.evaluated_images(5, 6)
    np.testing.assert_array_equal(data.training_images(4, validation=16).labels, labels[:4])
    assert len(data.held_out_images(16)) == 16
    for count, validation in ((21, 0), (5, 16), (0, 0)):
        with pytest.raises(InputError, match=f"train_images: found {count}, allowed: 1 to {20 - validation}; "):
            data.training_images(count, validation)
    with pytest.raises(InputError, match="validation_images: found 20, allowed: at most 19; "):
        data.training_images(None, validation=20)
    with pytest.raises(InputError, match="test_images: found 7, allowed: 1 to 6; "):
        data.test_images(7)
