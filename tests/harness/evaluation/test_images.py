"""Which images of a data set an evaluation looks at, with and without held-out images."""

import pytest

from harness.common.errors import InputError
from harness.data import load
from harness.evaluation.ranges import evaluated_images


@pytest.mark.parametrize("count", [None, 30])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_an_evaluation_looks_at_the_first_images_of_its_split(tiny_evaluation, split, count):
    data = load("digits")
    expected = data.test.labels if split == "test" else data.train.labels[-40:]
    images = evaluated_images(data, 40, tiny_evaluation(split=split, test_images=count))
    assert images.labels.equal(expected[:count])


def test_too_few_images_are_refused(tiny_evaluation):
    data = load("digits")
    for settings in ({"split": "validation", "test_images": 41}, {"test_images": len(data.test) + 1}):
        with pytest.raises(InputError):
            evaluated_images(data, 40, tiny_evaluation(**settings))
    with pytest.raises(InputError, match="held out no images"):
        evaluated_images(data, 0, tiny_evaluation(split="validation"))
