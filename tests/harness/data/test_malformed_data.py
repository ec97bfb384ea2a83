"""Malformed data files: each is named, and nothing is kept of it."""

import malformed
import pytest
from fake_data import fake_mnist, fake_parquet

from harness.data import DataError, load


def mnist(root):
    fake_mnist(root, suffix="")
    return sorted((root / "MNIST" / "raw").iterdir())


def cifar10(root):
    fake_parquet(root)
    return sorted((root / "cifar10" / "plain_text").iterdir())


@pytest.mark.parametrize("make", [mnist, cifar10], ids=lambda make: make.__name__)
def test_a_malformed_file_is_named(small, tmp_path, make):
    for path in make(tmp_path):
        good = path.read_bytes()
        cases = malformed.of_bytes(good)
        del cases["a bit flipped"]  # makes other data
        if make is mnist:
            cases |= {"a huge header": b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3 + good[16:], "no header": good[:6]}
            cases |= {"of less than nothing": b"\0\0\x08\x03" + b"\xff" * 12 + good[16:]}
        for content in cases.values():
            path.write_bytes(content)
            with pytest.raises(DataError, match=path.name):
                load(make.__name__, tmp_path)
        path.unlink()
        path.symlink_to(path)
        with pytest.raises(DataError):
            load(make.__name__, tmp_path)
        path.unlink()
        path.write_bytes(good)
    assert load(make.__name__, tmp_path)
