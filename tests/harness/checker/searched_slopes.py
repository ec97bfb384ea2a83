"""Certificates of what alpha-CROWN certified in a trial: cerdeq's search for slopes, written down in 8 bits."""

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from baselines import build
from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import Interval, trace
from cerdeq.bounds.optimise import optimised_slopes
from cerdeq.bounds.precision import counted_rounding
from cerdeq.bounds.tighten import tightened_values
from cerdeq.equilibrium import fold
from harness.data import load
from harness.storage import folder, names

MULTIPLIER = "/multiplier"


def write(place):
    """certificates.safetensors beside the verdicts of a trial without held-out images; the indices in it."""
    config, table = folder.read_trial(place / folder.TRIAL).config, pd.read_parquet(place / folder.VERDICTS)
    test = load(config.dataset).test_images(config.evaluation.test_images)
    model = build(config.model, config.dataset, config.width, **config.options)
    fold(model)
    model.load_state_dict(load_file(place / folder.WEIGHTS))
    program = trace(model.eval().double(), linear=True)
    certified = (table[names.VERDICT] == names.CERTIFIED) & (table[names.STAGE] == "alpha-crown")
    tensors = {}
    for index in np.flatnonzero(certified):
        example = slice(index, index + 1)
        spec = margin_spec(test.labels[example], 10).double()
        with torch.no_grad(), counted_rounding("cpu"):
            region = LinfBall(test.images[example].double() / 255, config.eps)
            values = tightened_values(program, Interval(region.center, region.radius), 2**28)
            slopes = optimised_slopes(program, values, spec, 0.0)
        tensors |= {f"{index}/{name}": tensor for name, tensor in leaf_a_row(slopes).items()}
    save_file(tensors, place / folder.CERTIFICATES)
    return np.flatnonzero(certified)


def leaf_a_row(slopes):
    """The tensors of one example: a leaf without splits for each row."""
    shares = {name: np.round(255 * s[0].flatten(1).numpy()).astype(np.uint8) for name, s in slopes.items()}
    tensors = {"row": np.arange(9, dtype=np.int16)}
    for name, share in shares.items():
        if name.endswith(MULTIPLIER):
            tensors[name.removesuffix(MULTIPLIER) + "/kept"] = share
            continue
        tensors[f"{name}/neurons"] = np.arange(share.shape[1], dtype=np.int32)
        tensors[f"{name}/slopes"] = share
        tensors[f"{name}/signs"] = np.zeros(share.shape, dtype=np.int8)
        tensors[f"{name}/multipliers"] = np.zeros(share.shape, dtype=np.float32)
    return tensors
