"""Entries for tests, on 50 images of the digits: networks of plain torch, tables, certificates, witnesses."""

import hashlib
import shutil
import warnings

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.numpy import save_file
from torch import nn

from cerdeq import LinfBall, load_onnx, margin_spec, verify
from harness.command_line import main
from harness.common.radius import Radius
from harness.data import load
from harness.entries.checked import box_ends
from harness.storage import entry_check

EPS, IMAGES = "1/12", 50
DATA = load("digits")


def train(network):
    """Train a network in plain torch on noise around all images at once."""
    torch.manual_seed(0)
    images, labels = DATA.train.images.float() / 255, DATA.train.labels
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(100):
        optimiser.zero_grad()
        noise = float(Radius(EPS)) * (2 * torch.rand_like(images) - 1)
        nn.functional.cross_entropy(network(images + noise), labels).backward()
        optimiser.step()
    return network.eval()


def plain():
    """A small network, trained."""
    torch.manual_seed(0)
    return train(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10)))


def write_onnx(network, path, shape=(1, 8, 8)):
    """Write a network by torch's own exporter; return the network of the file."""
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(network.float(), torch.zeros(1, *shape), path, dynamo=False)
    return load_onnx(path)


def verdicts_of(network, eps=EPS, count=IMAGES, branches=60, data=DATA):
    """Table, certificates and witnesses of a network, by our verifier. network: float32."""
    images, labels = data.test.images[:count], data.test.labels[:count]
    x = images.double() / 255
    predictions = network.float()(x.float()).argmax(1).numpy()
    result = verify(network.double(), LinfBall(x, Radius(eps)), margin_spec(labels, 10).double(), None, branches, True)
    table = pd.DataFrame(
        {"index": range(count), "label": labels.numpy(), "prediction": predictions, "verdict": result.status}
    )
    wrong = table["prediction"] != table["label"]
    table.loc[wrong, "verdict"] = "misclassified"
    table["stage"], table["verifier"], table["seconds"] = "bab", "cerdeq 0.1.0", 0.5
    table["margin"] = result.lower.amin(1).clamp(-1e9).numpy()
    low, high = (torch.from_numpy(ends)[images.long()] for ends in box_ends(Radius(eps)))
    points = torch.minimum(torch.maximum(result.counterexample, low), high).numpy()
    witnesses = {str(i): points[i] for i in table["index"][table["verdict"] == "falsified"]}
    named = {i: result.certificates[i] for i in table["index"][table["verdict"] == "certified"]}
    certificates = {f"{i}/{name}": tensor.numpy() for i, own in named.items() for name, tensor in own.items()}
    return table, certificates, witnesses


def write(folder, table, certificates=None, witnesses=None, **changes):
    """Write an entry's files beside the network that lies there, and its manifest. changes: of keys of that."""
    network = {"seed": 0, "network": "network.onnx", "verdicts": "verdicts.csv"}
    table.to_csv(folder / "verdicts.csv", index=False)
    for name, tensors in (("certificates", certificates), ("witnesses", witnesses)):
        if tensors:
            save_file(
                {key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / f"{name}.safetensors"
            )
            network[name] = f"{name}.safetensors"
    manifest = {
        "title": "Plain", "authors": ["Ä. Student"], "licence": "CC-BY-4.0", "dataset": "digits", "eps": EPS,
        "images": len(table), "network_kind": "relu", "verifier_kind": "complete", "networks": [network],
        **changes,
    }  # fmt: skip
    sign(folder, manifest)


def sign(folder, manifest):
    """Write a manifest with the SHA-256 of all files that are there."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "entry.yaml"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "entry.yaml").write_text(yaml.safe_dump(manifest | {"sha256": digests}, allow_unicode=True))


class Entry:
    """A copy of an entry that a test may change."""

    def __init__(self, original, to):
        self.folder, self.results = to / "mine", to / "results"
        shutil.copytree(original, self.folder)

    @property
    def manifest(self):
        return yaml.safe_load((self.folder / "entry.yaml").read_text())

    @property
    def table(self):
        return pd.read_csv(self.folder / "verdicts.csv")

    def sign(self, table=None, **changes):
        """Write another table, change the manifest, and sign all again."""
        if table is not None:
            table.to_csv(self.folder / "verdicts.csv", index=False)
        sign(self.folder, self.manifest | changes)

    def check(self, *options):
        """Run the command; return its exit status, and what it wrote, if anything."""
        given = ["--results-dir", str(self.results), "--nonce", "later", *map(str, options)]
        status = main("board", ["check", str(self.folder), *given])
        directory = entry_check.check_dir(self.results, "mine")
        return status, entry_check.read_check(directory) if directory.exists() else None

    def refused_at(self):
        """Check; return the name and the message of the step that fails."""
        status, check = self.check()
        assert status == 1
        (step,) = [step for step in check.steps if step.passed is False]
        assert len(step.message.splitlines()) == 1
        assert check.status == ("refuted" if sum(each.refuted for each in check.networks) else "refused")
        assert check.level == ["none", *entry_check.STEPS][entry_check.STEPS.index(step.name)]
        return step.name, step.message

    def assert_refused(self, step, message):
        """Check; assert that this step fails, and that its message has this part."""
        found = self.refused_at()
        assert found[0] == step and message in found[1], found
