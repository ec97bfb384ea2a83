"""Small networks of the registry, by family."""

from baselines import build, network_names

FAMILIES: dict[str, list[str]] = {}
for _name in network_names():
    FAMILIES.setdefault(_name.rstrip("0123456789"), []).append(_name)
_WIDTH = {"digits": 0.06, "tiny-imagenet": 0.02}


def width_for(dataset):
    return _WIDTH.get(dataset, 0.04)


def small(name, dataset, **options):
    return build(name, dataset=dataset, width=width_for(dataset), **options).double()
