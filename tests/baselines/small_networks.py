"""Small networks of the registry, and what they are given."""

import torch
from torch import nn

from baselines import DATASETS, build, network_names
from cerdeq import margin_spec
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import clipped_ball

FAMILIES: dict[str, list[str]] = {}
for _name in network_names():
    FAMILIES.setdefault(_name.rstrip("0123456789"), []).append(_name)
WIDTH = {"digits": 0.06, "tiny-imagenet": 0.02}


def small(name, dataset, **options):
    return build(name, dataset=dataset, width=WIDTH.get(dataset, 0.04), **options).double()


def images(dataset, count):
    return torch.rand(count, *DATASETS[dataset].shape, dtype=torch.float64)


def margins_in_training(model, dataset, x, labels, eps=1e-3):
    """One IBP pass in training mode: the margins' Interval."""
    ball = clipped_ball(x, eps)
    spec = margin_spec(labels, DATASETS[dataset].classes)
    return propagate(trace(model.train()), Interval(ball.center, ball.radius, x), Context(sound=False), spec)


def with_statistics(model, dataset):
    """In evaluation mode, its batch norm statistics those of data and its biases not 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        model.train()
        for _ in range(3):
            model(images(dataset, 4))
    return model.eval()
