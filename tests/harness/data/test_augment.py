"""Crops and flips against padding and slicing by torch."""

import torch
import torch.nn.functional as F

from harness.data.augment import augment, draw


def test_crops_and_flips_are_those_of_a_padded_image():
    images = torch.randint(0, 256, (30, 3, 9, 8), dtype=torch.uint8)
    draws = draw(30, padding=2, flip=True, seed=0, epoch=3, device=torch.device("cpu"))
    result = augment(images, *draws.batch(4, 20))
    padded = F.pad(images.float() / 255, (2, 2, 2, 2), mode="replicate")
    for row in range(20):
        index, flip, down, across = (int(part[4 + row]) for part in (draws.index, draws.flip, draws.down, draws.across))
        flipped = padded[index].flip(2) if flip else padded[index]
        expected = flipped[:, 2 + down : 11 + down, 2 + across : 10 + across]
        torch.testing.assert_close(result[row], expected)


def test_every_offset_and_both_flips_occur_and_each_image_once():
    draws = draw(4000, padding=2, flip=True, seed=0, epoch=1, device=torch.device("cpu"))
    assert draws.index.sort().values.equal(torch.arange(4000))
    assert set(draws.down.tolist()) == set(draws.across.tolist()) == {-2, -1, 0, 1, 2}
    assert 0.45 < draws.flip.float().mean() < 0.55


def test_no_augmentation_where_the_data_set_has_none():
    draws = draw(50, padding=0, flip=False, seed=0, epoch=1, device=torch.device("cpu"))
    assert not draws.flip.any() and not draws.down.any() and not draws.across.any()


def test_draws_depend_on_seed_and_epoch_alone():
    device = torch.device("cpu")
    first = draw(50, 2, True, 1, 2, device)
    torch.manual_seed(99)
    assert first.index.equal(draw(50, 2, True, 1, 2, device).index)
    assert not first.index.equal(draw(50, 2, True, 1, 3, device).index)
    assert not first.index.equal(draw(50, 2, True, 2, 2, device).index)
