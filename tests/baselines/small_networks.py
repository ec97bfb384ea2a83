"""Small networks of the registry."""

from baselines import build, network_names, required_options

NAMED = [name for name in network_names() if not required_options(name)]
DEPTHS = {"cnn": (5, 6, 9, 25), "resnet": (7, 13, 25), "tied": (7, 8, 25)}
"""Of the networks with an option `depth`."""
_WIDTH = {"digits": 0.06, "tiny-imagenet": 0.02}


def width_for(dataset):
    return _WIDTH.get(dataset, 0.04)


def small(name, dataset, **options):
    return build(name, dataset=dataset, width=width_for(dataset), **options).double()
