"""Networks of ONNX files for a data set: images in the layout of the file, and the contract of all networks."""

import hashlib
from pathlib import Path

import pytest
import torch
from onnx_writer import export_onnx
from torch import nn

from baselines import build
from baselines.contract import check_network
from cerdeq import OnnxError
from cerdeq.onnx.layers import Apply
from harness.checker.bounds.network import read_network

NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)).eval()
LAYOUTS = {
    (1, 8, 8): nn.Identity(),
    (8, 8, 1): Apply(torch.permute, (0, 3, 1, 2)),
    (64,): Apply(torch.reshape, (-1, 1, 8, 8)),
    (64, 1): Apply(torch.reshape, (-1, 1, 8, 8)),
    (1, 64): Apply(torch.reshape, (-1, 1, 8, 8)),
}


def file_for(shape, folder, network=NETWORK):
    """Return the path of the file of a network that takes images of this shape."""
    export_onnx(nn.Sequential(LAYOUTS.get(shape, nn.Identity()), network).eval(), folder / "net.onnx", shape)
    return str(folder / "net.onnx")


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_images_reach_the_network_in_its_layout(shape, tmp_path):
    model = build("onnx", "digits", file=file_for(shape, tmp_path)).eval()
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), NETWORK(model.normalize(x)))
    network = read_network(model.double())
    network.refuse_other_logits(model, x.double().numpy())


def test_a_file_keeps_the_contract_of_networks(tmp_path):
    check_network("onnx", "digits", width=1.0, file=file_for((1, 8, 8), tmp_path))


def test_what_does_not_fit_the_data_set_is_refused(tmp_path):
    path = file_for((1, 8, 8), tmp_path)
    with pytest.raises(OnnxError, match=r"found inputs \[1, 8, 8\], allowed: \[1, 28, 28\] or \[28, 28, 1\]"):
        build("onnx", "mnist", file=path)
    with pytest.raises(OnnxError, match=r"width: found 0\.5, allowed: 1"):
        build("onnx", "digits", 0.5, file=path)
    with pytest.raises(OnnxError, match=r"found outputs \[3\], allowed: \[10\]"):
        build("onnx", "digits", file=file_for((1, 8, 8), tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))
    with pytest.raises(OnnxError, match=r"other\.onnx: cannot be read"):
        build("onnx", "digits", file=str(tmp_path / "other.onnx"))
    digest = hashlib.sha256(Path(file_for((1, 8, 8), tmp_path)).read_bytes()).hexdigest()
    build("onnx", "digits", file=path, sha256=digest)
    with pytest.raises(OnnxError, match=f"found the SHA-256 {digest}, allowed: 0000"):
        build("onnx", "digits", file=path, sha256=64 * "0")
