"""Entries that claim more than they show: each is refused, and the message says what is wrong."""

import gzip
import hashlib
import json
import os
import shutil

import entry_files
import numpy as np
import onnx
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

from cerdeq import LinfBall, load_onnx, margin_spec, verify
from harness.entries import files
from harness.storage import entry_check


def of_verdict(table, verdict):
    """The first image with a verdict."""
    return int(table["index"][table["verdict"] == verdict].iloc[0])


def test_the_accuracy_is_off_by_one_image(entry):
    table = entry.table
    index = of_verdict(table, "misclassified")
    predicted = table["prediction"][index]
    table.loc[index, ["prediction", "verdict"]] = [table["label"][index], "unknown"]
    entry.sign(table)
    expected = (
        f"1 predictions are not the network's; image {index}: found {table['label'][index]}, onnxruntime predicts"
    )
    assert entry.refused_at() == ("accuracy", f"verdicts.csv: {expected} {predicted}")


def test_one_image_is_claimed_that_is_not_robust(entry):
    table = entry.table
    index = of_verdict(table, "falsified")
    witnesses = load_file(entry.folder / "witnesses.safetensors")
    del witnesses[str(index)]
    save_file(witnesses, entry.folder / "witnesses.safetensors")
    table.loc[index, ["verdict", "margin"]] = ["certified", 0.1]
    entry.sign(table)
    step, message = entry.refused_at()
    assert step == "attack"
    assert message == f"refuted: 1 claimed images have an adversarial one, such as 0/{index} (seed/image)"


@pytest.mark.parametrize("end", [0, 1])
def test_a_witness_lies_one_ulp_outside_of_the_box(entry, end):
    path = entry.folder / "witnesses.safetensors"
    witnesses, index = load_file(path), of_verdict(entry.table, "falsified")
    pixels = entry_files.DATA.test.images[index].numpy()
    ends = entry_files.box_ends(entry_files.Radius(entry_files.EPS))[end][pixels]
    witnesses[str(index)][0, 3, 3] = np.nextafter(ends[0, 3, 3], (-9, 9)[end])
    save_file(witnesses, path)
    entry.sign()
    entry.assert_refused(
        "witnesses", f"image {index} is falsified, but its witness is refused: a pixel lies outside of the box, by"
    )


def test_a_witness_is_missing_or_not_misclassified(entry):
    path = entry.folder / "witnesses.safetensors"
    witnesses, index = load_file(path), of_verdict(entry.table, "falsified")
    honest = witnesses.pop(str(index))
    save_file(witnesses, path)
    entry.sign()
    assert entry.refused_at() == ("witnesses", f"image {index} is falsified, but its witness is refused: there is none")
    for value, message in (
        (entry_files.DATA.test.images[index].numpy() / 255, "no margin is proved to be negative there"),
        (np.full_like(honest, np.nan), "a pixel lies outside of the box"),
        (honest.astype(np.float16), "found float16 [1, 8, 8], allowed: float32 or float64 [1, 8, 8]"),
    ):
        save_file(witnesses | {str(index): value}, path)
        entry.sign()
        assert message in entry.refused_at()[1]


def test_labels_are_swapped(entry):
    table = entry.table
    table.loc[[0, 1], "label"] = table["label"][[1, 0]].to_numpy()
    entry.sign(table)
    expected = f"verdicts.csv: image 0: label: found {table['label'][0]}, allowed: the data set's label"
    assert entry.refused_at() == ("hashes", expected)


def test_another_normalisation(entry):
    entry.sign(normalisation={"mean": [0.5], "std": [0.25]})
    assert entry.refused_at()[0] == "accuracy"


def test_rows_stand_twice(entry):
    table = entry.table
    table.loc[1] = table.loc[0]
    entry.sign(table)
    assert entry.refused_at() == ("hashes", "verdicts.csv: image 0 has two rows")


def test_rows_are_left_out(entry):
    entry.sign(entry.table.head(40), images=50)
    assert entry.refused_at() == ("hashes", "verdicts.csv: rows: found 40, allowed: 50, one for each image")


def test_certificates_of_another_eps(entry):
    """Of the images that need one, searched with a smaller eps."""
    path, network = entry.folder / "certificates.safetensors", load_onnx(entry.folder / "network.onnx").double()
    others = {}
    for index in sorted({int(name.split("/")[0]) for name in load_file(path)}):
        x, label = entry_files.DATA.test.images[[index]].double() / 255, entry_files.DATA.test.labels[[index]]
        for eps in (0.082, 0.08, 0.078, 0.076):
            result = verify(network, LinfBall(x, eps), margin_spec(label, 10).double(), None, 60, True)
            own = result.certificates[0].items()
            others = {f"{index}/{name}": tensor.numpy() for name, tensor in own} | others
    save_file(others, path)
    entry.sign()
    entry.assert_refused("proofs", "is not proved at eps 1/12 by its certificate: a margin has the lower bound -")


def add_a_faulty_certificate(entry, **tensors):
    """Add a certificate of a claimed image that linear bounds prove; return the image."""
    path, table = entry.folder / "certificates.safetensors", entry.table
    stored = load_file(path)
    needed = {int(name.split("/")[0]) for name in stored}
    image = next(int(n) for n in table["index"][table["verdict"] == "certified"] if n not in needed)
    save_file(stored | {f"{image}/{name}": tensor for name, tensor in tensors.items()}, path)
    entry.sign()
    return image


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"row": np.int16([0]), "nowhere/neurons": np.int32([0])}, "network.nowhere/neurons names no activation"),
        ({"row": np.int16([9])}, "a leaf has a row that is not in 0 to 8"),
        ({"row": np.int16([0, 0])}, "the leaves of row 0 do not cover it"),
        ({"row": np.int16([0]), "relu3/neurons": np.int32([0])}, "network.relu3: a tensor is missing"),
        ({"row": np.int16([0]), "hidden/nowhere/row": np.int32([0])}, "hidden/network.nowhere names no activation"),
        ({"splits": np.int32([[0, 64]])}, "there is no part 0 with an input 64"),
        ({"equilibrium/nodes": np.int32([[0, 0, 0, 0]])}, "the network has not one equilibrium"),
    ],
)
def test_certificates_that_are_refused_though_their_image_is_not_drawn(entry, monkeypatch, tensors, why):
    monkeypatch.setattr("harness.entries.proofs.SAMPLE", 0)
    image = add_a_faulty_certificate(entry, **tensors)
    step, message = entry.refused_at()
    assert step == "proofs" and f"image {image}: its certificate is refused: " in message and why in message


def test_certificates_of_no_claimed_image_and_twice(entry):
    path, stored = entry.folder / "certificates.safetensors", load_file(entry.folder / "certificates.safetensors")
    wrong, (first, tensor) = of_verdict(entry.table, "misclassified"), next(iter(stored.items()))
    for name, message in (
        (f"{wrong}/row", f"found '{wrong}/row', allowed: <image>/... of images that the table certifies"),
        ("00/row", "found '00/row', allowed: <image>/... of images that the table certifies"),
        ("row", "found 'row', allowed: <image>/..."),
        (first.replace("relu3", "network.relu3"), "twice, with and without 'network.', allowed: once"),
    ):
        save_file(stored | {name: tensor}, path)
        entry.sign()
        entry.assert_refused("proofs", message)


def test_weights_change_after_hashing(entry):
    path = entry.folder / "network.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    entry.assert_refused("hashes", f"network.onnx: found the SHA-256 {hashlib.sha256(content).hexdigest()}, allowed")


def test_a_zip_bomb(entry):
    table = entry.table.assign(stage="0" * 2 * 10**6)
    table.to_parquet(entry.folder / "verdicts.parquet", compression="zstd", use_dictionary=False)
    assert (entry.folder / "verdicts.parquet").stat().st_size < 10**6
    networks = [entry.manifest["networks"][0] | {"verdicts": "verdicts.parquet"}]
    entry.sign(networks=networks)
    step, message = entry.refused_at()
    assert step == "hashes" and message.startswith("verdicts.parquet: bytes, unpacked: found 10")


def test_a_text_that_is_stored_once_for_all_rows(entry):
    """3 kB of Parquet would become 1.5 GB."""
    table, path = pa.Table.from_pandas(entry.table), entry.folder / "verdicts.parquet"
    stage = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), ["0" * 30 * 2**20])
    table = table.set_column(table.column_names.index("stage"), "stage", stage)
    parquet.write_table(table, path, store_schema=False, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 10**4
    entry.sign(networks=[entry.manifest["networks"][0] | {"verdicts": "verdicts.parquet"}])
    entry.assert_refused("hashes", "verdicts.parquet: bytes of stage, unpacked: found 1572864000, allowed: at most")


def test_a_million_columns(entry):
    (entry.folder / "verdicts.csv").write_text("," * 10**6 + "\n")
    entry.sign()
    entry.assert_refused("hashes", "verdicts.csv: found the columns")


@pytest.mark.parametrize(
    ("classes", "of_file", "message"),
    [
        (2**20, 2**20, "found more than 17 MB when unpacked; allowed: up to that"),
        (2**15, 2**15, "found outputs [32768], allowed: [10]"),
        (10, 2**15, "found outputs [32768], allowed: [10]"),
    ],
)
def test_a_network_s_size_and_shape_are_checked_before_it_is_run(entry, monkeypatch, classes, of_file, message):
    """Of zeros, so that gzip makes them small. classes: those that the file says it has."""
    monkeypatch.setattr("cerdeq.onnx.compare.Runtime", lambda *_: pytest.fail("it is run"))
    if classes > 10:
        monkeypatch.setattr("cerdeq.onnx.file.array_of", lambda *_: pytest.fail("numbers are read"))
    model = onnx.load(entry.folder / "network.onnx")
    graph = model.graph
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes
    weight, bias = ("weight", "bias")
    graph.node[-1].input[1:] = [weight, bias]
    for name, shape in ((weight, (of_file, 30)), (bias, (of_file,))):
        graph.initializer.append(onnx.helper.make_tensor(name, 1, shape, bytes(4 * np.prod(shape)), raw=True))
    (entry.folder / "network.onnx").write_bytes(gzip.compress(model.SerializeToString()))
    entry.sign()
    entry.assert_refused("accuracy", f"network.onnx: {message}")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\x1b[31m", "\u202e evil", "$(rm -rf .)", "`id`"])
def test_a_script_in_a_name(entry, name):
    entry.sign(authors=[name])
    step, message = entry.refused_at()
    assert step == "schema"
    assert message.startswith("entry.yaml: networks") or "authors.0" in message
    assert "printable characters with a letter or digit, none of <>" in message or "special characters" in message


def test_a_script_in_the_table(entry):
    entry.sign(entry.table.assign(verifier="<img src=x onerror=alert(1)>"))
    entry.assert_refused("hashes", "verifier: found '<img src=x onerror=alert(1)>'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": float("nan")}, "eps: found 'nan'"),
        ({"eps": "-1/12"}, "eps: found '-1/12'"),
        ({"eps": "1e-999999999/1"}, "eps: found '1e-999999999/1'"),
        ({"eps": "0"}, "eps"),
        ({"eps": "3/2"}, "eps"),
        ({"eps": "1/0"}, "eps"),
        ({"norm": "l2"}, "norm: found 'l2'"),
        ({"box": [-1, 2]}, "box: found"),
        ({"surprise": 1}, "surprise: unknown key"),
        ({"paper": "javascript:alert(1)"}, "paper: found"),
        ({"images": 10**6}, "images: found 1000000, allowed: 1 to 360"),
        ({"normalisation": {"mean": [0.0], "std": [0.0]}}, "normalisation.std.0: found 0.0"),
        ({"normalisation": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}}, "normalisation: allowed: 1 numbers"),
        ({"architecture": {"model": "onnx", "options": {"file": "/etc/passwd"}}}, "architecture.model: found 'onnx'"),
        ({"architecture": {"model": "os:system"}}, "architecture.model: found 'os:system'"),
        ({"networks": [{"seed": 0, "network": "../../x.onnx", "verdicts": "v.csv"}]}, "networks.0.network: found '../"),
        ({"networks": [{"seed": 0, "network": "/etc/x.onnx", "verdicts": "v.csv"}]}, "networks.0.network: found '/etc"),
        ({"networks": [{"seed": 0, "network": "x.onnx", "verdicts": "v.csv"}]}, "sha256: x.onnx is missing"),
        ({"networks": []}, "networks: found []"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(entry, change, message):
    entry.sign(**change)
    entry.assert_refused("schema", message)


def test_one_network_under_two_seeds(entry):
    (network,) = entry.manifest["networks"]
    shutil.copy(entry.folder / "network.onnx", entry.folder / "again.onnx")
    entry.sign(networks=[network, network | {"seed": 1, "network": "again.onnx"}])
    assert entry.refused_at() == (
        "schema",
        "entry.yaml: networks: found one file under two seeds, allowed: a network trained with each",
    )


HOSTILE = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)
    ),
    "a call": "title: !!python/object/apply:os.system ['touch hacked']\n",
    "deep": "[" * 100_000,
    "no text": "\xff\xfe",
    "a list": "[1, 2]",
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_manifests_that_are_no_yaml(entry, kind):
    (entry.folder / "entry.yaml").write_bytes(HOSTILE[kind].encode("latin-1"))
    step, message = entry.refused_at()
    assert step == "schema" and len(message) <= 1000


def test_links_and_other_files(entry, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("1")
    (entry.folder / "network.onnx").unlink()
    (entry.folder / "network.onnx").symlink_to(secret)
    assert entry.refused_at() == ("hashes", "network.onnx is a link")
    (entry.folder / "network.onnx").unlink()
    os.mkfifo(entry.folder / "network.onnx")
    assert entry.refused_at() == ("hashes", "network.onnx is no plain file")
    (entry.folder / "network.onnx").unlink()
    assert entry.refused_at() == ("hashes", "network.onnx cannot be read: No such file or directory")
    (entry.folder / "more").mkdir()
    assert entry.refused_at() == ("hashes", "more has no SHA-256 in entry.yaml")
    (entry.folder / "more").rmdir()
    (entry.folder / "<script>").touch()
    assert "found a file '<script>'" in entry.refused_at()[1]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("index", 51, "found the image 51, allowed: 0 to 49"),
        ("index", "1.5", "cannot be read"),
        ("prediction", 10, "prediction: found 10, allowed: 0 to 9"),
        ("label", "", "label: found an empty cell"),
        ("verdict", "robust", "verdict: found 'robust', allowed: certified, falsified"),
        ("verdict", "misclassified", "allowed: misclassified where the prediction is wrong, and only there"),
        ("verifier", "", "verifier: found '', allowed: the verifier and its version"),
        ("margin", "inf", "margin: found inf"),
        ("margin", "-0.1", "margin: found -0.1, allowed: above 0 where an image is certified"),
        ("seconds", "-1", "seconds: found -1.0, allowed: at least 0"),
    ],
)
def test_tables_that_are_refused(entry, column, value, message):
    table = entry.table.astype(object)
    table.loc[of_verdict(table, "certified"), column] = value
    entry.sign(table)
    entry.assert_refused("hashes", message)


def test_files_of_other_kinds(entry):
    for name, step in (
        ("network.onnx", "accuracy"),
        ("witnesses.safetensors", "witnesses"),
        ("verdicts.csv", "hashes"),
    ):
        content = (entry.folder / name).read_bytes()
        for damaged in (b"", b"\x80\x04garbage", content[: len(content) // 2]):
            (entry.folder / name).write_bytes(damaged)
            entry.sign()
            assert entry.refused_at()[0] == step
        (entry.folder / name).write_bytes(content)


def test_a_step_that_takes_too_much_time_or_memory_ends(entry):
    with pytest.raises(files.OutOfTimeError), files.limits(0.2):
        while True:
            pass
    with pytest.raises(files.OutOfTimeError), files.limits(0.2), files.limits(60):
        while True:
            pass
    with pytest.raises(MemoryError), files.limits(60, 2**28):
        np.zeros(2**30, np.uint8)
    np.zeros(2**29, np.uint8)
    status, check = entry.check("--seconds", "1e-6")
    assert (status, check.status, check.level) == (0, "unconfirmed", "none")
    assert [step.message for step in check.steps] == ["stopped after 1e-06 s", *["not run"] * 5]


def test_a_limit_that_no_timer_takes_is_a_wrong_request(entry, capsys):
    assert entry.check("--seconds", "1e300") == (2, None)
    assert "--seconds: found 1e+300, allowed: above 0, at most 1e+06" in capsys.readouterr().err


def test_nothing_of_a_refused_manifest_is_written(entry):
    entry.check()
    entry.sign(title="<script>")
    status, check = entry.check()
    assert (status, check.title, check.authors, check.networks) == (1, "", [], [])
    directory = entry_check.check_dir(entry.results, "mine")
    assert entry_check.read_checked_verdicts(directory) is None
    assert json.loads((directory / "check.json").read_text())["level"] == "none"


def test_onnxruntime_computes_another_function_by_rounding(entry):
    """Half the logits, a, are added as a - ((a + 2^31) - 2^31): 0 in real numbers, a in float32."""
    path = entry.folder / "network.onnx"
    model = onnx.load(path)
    graph, output = model.graph, model.graph.output[0].name
    graph.node[-1].output[0] = "logits"
    for name, value in (("half", 0.5), ("large", 2.0**31), ("shift", 2e6)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 10), value, np.float32), name))
    for kind, inputs, to in (
        ("Mul", ["logits", "half"], "a"), ("Add", ["a", "large"], "sum"), ("Sub", ["sum", "large"], "rounded"),
        ("Sub", ["a", "rounded"], "decoy"), ("Add", ["logits", "decoy"], "both"), ("Add", ["both", "shift"], output),
    ):  # fmt: skip
        graph.node.append(onnx.helper.make_node(kind, inputs, [to]))
    onnx.save(model, path)
    entry.sign()
    entry.assert_refused("accuracy", "in float64, allowed: the same up to rounding, as proofs are in real numbers")
