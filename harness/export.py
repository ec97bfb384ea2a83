"""`python -m harness.export results/<sweep>/networks/<key> OUT --images N`: write a network for other verifiers.

OUT gets network.onnx, a VNN-LIB 2.0 file for each of the first N test images and each eps of the network's evaluations,
and instances.csv, a line `onnx,vnnlib,timeout` for each. A file asks for a counterexample: `unsat` says that the image
is certified, `sat` that it is not. A comment in it has our verdicts.

Inputs are pixels in [0, 1], since normalisation is the network's first layer. The box of a file contains the exact ball
of eps, cut off at 0 and 1: its ends are decimals, rounded outwards.
"""

import argparse
from fractions import Fraction
from functools import cache
from itertools import product
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from harness import command_line
from harness.command_line import OK, add_data_dir, add_plugins
from harness.common import names
from harness.common.errors import InputError, require
from harness.common.terminal import say, with_plural
from harness.config import plugins
from harness.storage import folder
from harness.storage.files import write_text

# What imports torch or pandas is imported late: it takes seconds.
if TYPE_CHECKING:
    import numpy as np

NETWORK, INSTANCES = "network.onnx", "instances.csv"
_DIGITS = 12  # of the box's ends
_SECONDS = 60  # the third column of instances.csv


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("directory", type=Path, metavar="FOLDER", help="results/<sweep>/networks/<key>")
    parser.add_argument("output", type=Path, metavar="OUT", help="a new or empty directory")
    parser.add_argument("--images", type=int, required=True, metavar="N", help="the first N test images")
    add_plugins(parser)
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return the exit status. Raises InputError."""
    network_dir, output = options.directory, options.output
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    require("--images", options.images, options.images >= 1, "at least 1")
    require("OUT", str(output), is_free, "a new or empty directory")
    plugins.trust(options.plugin, [folder.sweep_dir_of(network_dir)])
    model = harness.load(network_dir, options.plugin)
    record = folder.read_training(network_dir / folder.TRAINING)
    verdicts = _verdicts_by_eps(network_dir)
    require("FOLDER", str(network_dir), bool(verdicts), f"a network with {folder.EVALUATIONS}/*/{folder.EVALUATION}")
    from cerdeq import OnnxError, export_onnx
    from harness.data import load

    data = load(record.config.data_source, options.data_dir)
    require("data", data.fingerprint, data.fingerprint == record.fingerprint, f"the network's, {record.fingerprint}")
    test = data.test_images(options.images)
    images, labels = test.images.numpy(), test.labels.tolist()
    output.mkdir(parents=True, exist_ok=True)
    try:
        export_onnx(model, output / NETWORK, images.shape[1:])
    except OnnxError as error:
        output.rmdir()
        raise InputError(f"{network_dir}: {error}") from None
    lines = list[str]()
    for (eps, of_images), index in product(verdicts.items(), range(options.images)):
        name = f"image{index}_eps{str(eps).replace('/', '_')}.vnnlib"
        comment = f"{network_dir.name}, test image {index}, label {labels[index]}, eps {eps}; verdict: "
        comment += ", ".join(dict.fromkeys(of_images.get(index, []))) or "none"
        write_text(output / name, property_text(images[index], labels[index], data.info.classes, eps, comment))
        lines.append(f"{NETWORK},{name},{_SECONDS}\n")
    write_text(output / INSTANCES, "".join(lines))
    say(f"{output}: {NETWORK}, {INSTANCES} and {with_plural(len(lines), 'VNN-LIB file')}")
    return OK


def _verdicts_by_eps(network_dir: Path) -> dict[Fraction, dict[int, list[str]]]:
    """Return the verdicts of test images by index, one for each evaluation, by the evaluations' eps. Raises InputError.

    Radii of unfinished evaluations have none.
    """
    from harness.storage.parquet import read_verdicts

    verdicts = dict[Fraction, dict[int, list[str]]]()
    for path in folder.evaluation_folders(network_dir):
        evaluation = folder.read_evaluation(path).config
        of_images = verdicts.setdefault(evaluation.eps, {})
        if evaluation.split == "test" and folder.read_result(path) is not None:
            table = read_verdicts(path, [names.INDEX, names.VERDICT])
            for index, verdict in zip(table[names.INDEX].tolist(), table[names.VERDICT], strict=True):
                of_images.setdefault(index, []).append(verdict)
    return dict(sorted(verdicts.items()))


def property_text(pixels: "np.ndarray", label: int, classes: int, eps: Fraction, comment: str) -> str:
    """Return a file that asks for an image in the ball of `pixels` for which another logit is at least the label's.

    pixels: uint8 [C, H, W]. The ball is that of pixels / 255, cut off at 0 and 1.
    """
    shape, ends = ",".join(map(str, (1, *pixels.shape))), [_ends(level, eps) for level in range(256)]
    inputs = [f"X[0,{','.join(map(str, place))}]" for place in product(*map(range, pixels.shape))]
    box = (
        f"(assert (and (>= {name} {low}) (<= {name} {high})))"
        for name, (low, high) in zip(inputs, (ends[level] for level in pixels.ravel().tolist()), strict=True)
    )
    others = " ".join(f"(>= Y[0,{other}] Y[0,{label}])" for other in range(classes) if other != label)
    declared = f"(declare-input X float32 [{shape}]) (declare-output Y float32 [1,{classes}])"
    return "\n".join(
        [
            f"; {comment}",
            "(vnnlib-version <2.0>)",
            f"(declare-network f {declared})",
            *box,
            f"(assert (or {others}))",
            "",
        ]
    )


@cache
def _ends(level: int, eps: Fraction) -> tuple[str, str]:
    """Return the ends of the ball of a grey level / 255, cut off at 0 and 1, as decimals that are rounded outwards."""
    low, high = max(Fraction(0), Fraction(level, 255) - eps), min(Fraction(1), Fraction(level, 255) + eps)
    return _decimal(floor(low * 10**_DIGITS)), _decimal(ceil(high * 10**_DIGITS))


def _decimal(number: int) -> str:
    """Return number / 10^12 as a decimal."""
    whole, rest = divmod(number, 10**_DIGITS)
    return f"{whole}.{rest:0{_DIGITS}}"


if __name__ == "__main__":
    raise SystemExit(command_line.main("export"))
