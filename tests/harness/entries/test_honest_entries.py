"""Entries made by other means pass; what the check could not confirm is said; counterexamples stay."""

import signal
import time
from collections import OrderedDict
from fractions import Fraction

import entry_files
import numpy as np
import pytest
import torch
from entry_files import EPS, Entry
from fetched_checkpoints import SWEEPS
from safetensors.numpy import load_file, save_file
from torch import nn

from baselines import build
from baselines.layers import Normalize
from harness.command_line import main
from harness.common.errors import InputError
from harness.common.radius import Radius
from harness.data import load
from harness.entries.attack import FULL
from harness.entries.checked import box_ends
from harness.entries.proofs import in_random_order
from harness.storage import entry_check


def test_a_network_of_plain_torch_with_certificates_is_checked(entry, capsys):
    """On the first 50 of 360 test images: not ranked."""
    status, check = entry.check()
    assert (status, check.status, check.level) == (0, "partial", "proofs")
    (network,) = check.networks
    verdicts = entry.table["verdict"].value_counts()
    assert network.claimed == network.sample == network.confirmed_by_certificate == verdicts["certified"]
    assert (network.refuted, network.unconfirmed, network.parameters) == (0, 0, 64 * 30 + 30 + 300 + 10)
    reported, checked = network.reported, network.checked
    assert (checked.standard_error, checked.certified_error) == (reported.standard_error, reported.certified_error)
    assert checked.attack_error == pytest.approx(100 * (verdicts["falsified"] + verdicts["misclassified"]) / 50)
    assert (check.eps, check.dataset, check.images, check.authors) == (EPS, "digits", 50, ["Ä. Student"])
    rows = entry_check.read_checked_verdicts(entry_check.check_dir(entry.results, "mine"))
    assert len(rows) == 50 and rows["verdict"].value_counts().to_dict() == verdicts.to_dict()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:6]] == [[name, "passed"] for name in entry_check.STEPS]
    assert lines[6] == "partial: mine, checked up to proofs on 50 test images alone, so it is not ranked; nonce later"


def test_an_entry_of_one_image_is_not_ranked(entry):
    entry.sign(
        entry.table.head(1), images=1, networks=[{"seed": 0, "network": "network.onnx", "verdicts": "verdicts.csv"}]
    )
    status, check = entry.check()
    assert (status, check.status, check.level, check.images) == (0, "partial", "proofs", 1)


def test_a_file_that_no_network_names_is_said(entry):
    (entry.folder / "notes.txt").write_text("nobody reads this")
    entry.sign()
    _, check = entry.check()
    assert check.steps[1].message.startswith("5 files have their SHA-256; no network names notes.txt; 50 rows")


def test_the_same_as_parquet(entry):
    table = entry.table
    (entry.folder / "verdicts.csv").unlink()
    table.to_parquet(entry.folder / "verdicts.parquet")
    entry.sign(networks=[entry.manifest["networks"][0] | {"verdicts": "verdicts.parquet"}])
    assert entry.check()[1].status == "partial"


def test_without_certificates_our_verifier_proves_the_sample(entry):
    network = entry.manifest["networks"][0]
    del network["certificates"]
    (entry.folder / "certificates.safetensors").unlink()
    entry.sign(networks=[network])
    status, check = entry.check()
    assert (status, check.status, check.level) == (0, "unconfirmed", "verifier")
    (record,) = check.networks
    assert record.confirmed_by_verifier > 0 and record.unconfirmed == 0
    assert record.confirmed_by_certificate + record.confirmed_by_verifier == record.sample
    assert record.checked.certified_error == record.reported.certified_error


def test_a_network_that_the_checker_cannot_read_is_unconfirmed(tmp_path):
    torch.manual_seed(0)
    network = entry_files.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10)))
    (folder := tmp_path / "original").mkdir()
    entry_files.write_onnx(network, folder / "network.onnx")
    table, _, witnesses = entry_files.verdicts_of(network, count=20)
    entry_files.write(folder, table, None, witnesses, network_kind="other")
    status, check = Entry(folder, tmp_path).check()
    assert (status, check.status, check.level) == (0, "unconfirmed", "verifier")
    assert "no certificate was checked: the checker has no rule for" in check.steps[-1].message


def test_a_proof_that_takes_too_long_is_open(entry, monkeypatch):
    monkeypatch.setattr("harness.entries.proofs.IMAGE_SHARE", 1e-9)
    status, check = entry.check()
    assert (status, check.status, check.level) == (0, "unconfirmed", "attack")
    (record,) = check.networks
    assert record.unconfirmed == record.sample == record.claimed > 0
    assert record.checked.certified_error == 100


def test_what_is_done_in_time_counts(entry, monkeypatch):
    def run_out_of_time():
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 100 < left <= 0.9 * 200, "of the search, not of its step"
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        time.sleep(60)

    def slow_attack(network, settings):
        yield len(network.claims), {}
        if settings == FULL:
            run_out_of_time()

    monkeypatch.setattr("harness.entries.attack.attack", slow_attack)
    proved = iter([(True, "")] * 3)
    monkeypatch.setattr("harness.entries.proofs.proves_certificate", lambda *_: next(proved, None) or run_out_of_time())
    status, check = entry.check("--seconds", 200)
    assert (status, check.status, check.level) == (0, "unconfirmed", "attack")
    (record,) = check.networks
    assert record.checked.attack_error is not None
    assert (record.confirmed_by_certificate, record.unconfirmed) == (3, record.sample - 3)
    assert f"of {record.sample} drawn images the checker proves 3" in check.steps[-1].message


def test_a_registered_network_with_two_seeds_is_checked(tmp_path):
    (folder := tmp_path / "original").mkdir()
    entries = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build("conv", "digits", 0.1).eval()
        save_file(
            {name: tensor.numpy() for name, tensor in network.state_dict().items()}, folder / f"{seed}.safetensors"
        )
        table, _, _ = entry_files.verdicts_of(network, "1/1000", 20)
        assert set(table["verdict"]) <= {"certified", "misclassified"}
        table.to_csv(folder / f"{seed}.csv", index=False)
        entries.append({"seed": seed, "network": f"{seed}.safetensors", "verdicts": f"{seed}.csv"})
    manifest = {
        "title": "Untrained", "authors": ["A"], "licence": "MIT", "dataset": "digits", "eps": "1/1000", "images": 20,
        "network_kind": "relu", "verifier_kind": "complete",
        "networks": entries, "architecture": {"model": "conv", "width": 0.1},
    }  # fmt: skip
    entry_files.sign(folder, manifest)
    status, check = Entry(folder, tmp_path).check()
    assert (status, check.status, [each.seed for each in check.networks]) == (0, "partial", [0, 1])


def test_a_published_network_of_paradox_is_checked(tmp_path):
    path = SWEEPS.parents[1] / "checkpoints/paradox/mnist_CONV_box.pt"
    if not path.is_file():
        pytest.skip(f"there is no {path}: sweeps/fetch_checkpoints.py fetches it")
    try:
        data = load("mnist", writes=False)
    except InputError as error:
        pytest.skip(f"MNIST is not here: {error}")
    saved = torch.load(path, "cpu", weights_only=True)
    weights = [tensor for name, tensor in saved.items() if not name.startswith("layers.0.")]
    network = build("conv", "mnist")[1:].eval()
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    (folder := tmp_path / "original").mkdir()
    network = entry_files.write_onnx(network, folder / "network.onnx", (1, 28, 28))
    outside = {"mean": [0.1307], "std": [0.3081]}  # layers.0 of the checkpoint
    network = nn.Sequential(OrderedDict(normalize=Normalize(*map(tuple, outside.values())), network=network)).eval()
    table, certificates, witnesses = entry_files.verdicts_of(network, "0.3", 20, 5, data)
    entry_files.write(folder, table, certificates, witnesses, eps=0.3, dataset="mnist", normalisation=outside)
    status, check = Entry(folder, tmp_path).check()
    assert (status, check.status) == (0, "partial")
    assert check.networks[0].claimed > 10


def test_a_witness_from_outside_refutes_the_entry_for_good(entry, tmp_path, capsys, monkeypatch):
    """A claim that our attack does not break: the attack is switched off."""
    monkeypatch.setattr("harness.entries.attack.attack", lambda *_: iter(()))
    table, path = entry.table, entry.folder / "witnesses.safetensors"
    index = int(table["index"][table["verdict"] == "falsified"].iloc[0])
    witnesses = load_file(path)
    point = witnesses.pop(str(index))
    save_file(witnesses, path)
    table.loc[index, ["verdict", "margin"]] = ["certified", 0.1]
    entry.sign(table)
    robust = int(table["index"][(table["verdict"] == "certified") & (table["index"] != index)].iloc[0])
    for name, value, message in (
        (f"0/{robust}", entry_files.DATA.test.images[robust].numpy() / 255, "no margin is proved to be negative there"),
        (f"0/{index}", point + 1, "a pixel lies outside of the box"),
        ("0/79999", point, "is claimed to be certified"),
        (str(index), point, "is claimed to be certified"),
    ):
        save_file({name: value}, tmp_path / "sent.safetensors")
        assert entry.check("--witness", tmp_path / "sent.safetensors") == (2, None)
        assert message in capsys.readouterr().err
    save_file({f"0/{index}": point}, tmp_path / "sent.safetensors")
    for options in (["--witness", tmp_path / "sent.safetensors"], []):  # once it is known, it stays
        status, check = entry.check(*options)
        assert (status, check.status, check.level, check.networks[0].refuted) == (1, "refuted", "witnesses", 1)
        assert check.networks[0].checked.certified_error is None
    entry.sign(title="<script>")
    status, check = entry.check()  # a refused entry does not hide that it was refuted
    assert (status, check.status) == (1, "refuted")


def test_wrong_requests(entry, tmp_path, capsys):
    (bare := tmp_path / "bare").mkdir()
    for words, message in (
        ([str(bare)], "allowed: a folder with entry.yaml"),
        ([str(entry.folder), "--seconds", "0"], "--seconds"),
        ([str(entry.folder), "--nonce", "\u202e"], "--nonce"),
        ([str(entry.folder), "--witness", str(bare)], "--witness"),
    ):
        assert main("board", ["check", *words, "--results-dir", str(entry.results)]) == 2
        assert message in capsys.readouterr().err
    assert not entry.results.exists()
    entry.folder.rename(tmp_path / "<script>")
    assert main("board", ["check", str(tmp_path / "<script>"), "--results-dir", str(entry.results)]) == 2


def test_the_sample_depends_on_manifest_nonce_and_seed():
    orders = [
        in_random_order(list(range(50)), *key) for key in (("a", "b", 0), ("c", "b", 0), ("a", "c", 0), ("a", "b", 1))
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert in_random_order(list(range(50)), "a", "b", 0) == orders[0]


def test_the_box_s_ends_are_the_outermost_float64_inside():
    eps = Radius("8/255")
    low, high = box_ends(eps)
    for level in range(256):
        smallest, largest = max(Fraction(0), Fraction(level, 255) - eps), min(Fraction(1), Fraction(level, 255) + eps)
        assert Fraction(low[level]) >= smallest > Fraction(np.nextafter(low[level], -1))
        assert Fraction(high[level]) <= largest < Fraction(np.nextafter(high[level], 2))
