"""Networks trained elsewhere in sweep files: what is read of their files, what is refused before anything starts."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from onnx_writer import export_onnx
from safetensors.torch import load_file, save_file, save_model
from small_sweep import changed, load_sweep, refusal, trainings_of, write
from torch import nn

from baselines import build, registry
from cerdeq.equilibrium import fold
from harness.common.errors import InputError
from harness.pretrained.network_file import digest_of
from harness.pretrained.weights import read_weights
from harness.storage.folder import copy_network_file

WIDTH = 0.1
SOURCE = {"paper": "Someone 2022", "method": "Box", "clean_accuracy": 90.5, "certified_accuracy": 80}


def state(model="conv", **options):
    """The tensors of a small network as its authors would save them: without our normalisation."""
    network = build(model, "digits", WIDTH, **options)
    fold(network)
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("normalize.")}


def content(*changes, model="conv", checkpoint="net.pt", **keys):
    """A sweep of one network trained elsewhere."""
    entry = {"model": model, "width": WIDTH, "checkpoint": checkpoint, **keys}
    return changed(("trials", [entry]), ("seeds", [0]), ("train", {}), *changes)


def read(directory, sweep):
    """The weights of the sweep's only network."""
    loaded = load_sweep(write(directory, sweep), "full", True)
    (training,) = loaded.trainings
    return read_weights(loaded.checkpoints[training.checkpoint.sha256], training)


@pytest.fixture
def saved(tmp_path):
    """The tensors that net.pt holds."""
    tensors = state()
    torch.save(tensors, tmp_path / "net.pt")
    return tensors


def assert_same(weights, tensors, mean=0.0, std=1.0):
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("normalize.")}
    assert own.keys() == tensors.keys() and all(torch.equal(own[name], tensors[name]) for name in own)
    torch.testing.assert_close(weights["normalize.mean"].item(), mean)
    torch.testing.assert_close(weights["normalize.std"].item(), std)


def tied(shape, classes, width=1.0):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, classes))
    network[3].weight = network[1].weight
    return network


def test_a_file_of_save_model_has_a_tied_weight_once_and_two_values_are_refused(tmp_path, monkeypatch):
    registry.import_networks()
    monkeypatch.setattr(registry, "_BUILDERS", registry._BUILDERS | {"tied_layers": tied})
    network, path = tied(None, 10), tmp_path / "net.safetensors"
    tensors, sweep = network.state_dict(), content(model="tied_layers", checkpoint=path.name)
    for saved in (network, nn.DataParallel(network)):
        save_model(saved, str(path))
        assert len(load_file(path)) == len(tensors) - 1
        assert_same(read(tmp_path, sweep), tensors)
    save_file(tensors | {"3.weight": tensors["3.weight"] + 1}, path)
    with pytest.raises(InputError, match=r"net\.safetensors: 1\.weight and 3\.weight: found two values, allowed: one"):
        read(tmp_path, sweep)


def test_an_onnx_file_is_a_checkpoint_of_its_own_network(tmp_path):
    network, path = build("conv", "digits", WIDTH)[1:].eval(), tmp_path / "net.onnx"
    export_onnx(network, path, (1, 8, 8))
    keys = {"model": "onnx", "checkpoint": "net.onnx", "width": 1, "options": {"file": str(path)}}
    own = [tensor for name, tensor in read(tmp_path, content(**keys)).items() if not name.startswith("normalize.")]
    assert all(torch.equal(*pair) for pair in zip(own, network.state_dict().values(), strict=True))
    other = tmp_path / "other.onnx"
    other.write_bytes(path.read_bytes()[:-40])
    assert "other.onnx: " in refusal(tmp_path, content(**keys | {"checkpoint": "other.onnx"}))


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path):
    """The copy in a network's folder once lacked them, though the sweep was accepted."""
    path, copy = tmp_path / "net.onnx", tmp_path / "copy" / "source.checkpoint"
    export_onnx(build("conv", "digits", WIDTH)[1:].eval(), path, (1, 8, 8))
    keys = {"model": "onnx", "width": 1, "options": {"file": str(path)}, "checkpoint": "net.onnx"}
    own = read(tmp_path, content(**keys))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    loaded = load_sweep(write(tmp_path, content(**keys)), "full", True)
    (training,) = loaded.trainings
    copy_network_file(training.checkpoint, loaded.checkpoints[training.checkpoint.sha256], copy)
    assert digest_of(copy.read_bytes()) == training.checkpoint.sha256
    data = tmp_path / "net.onnx.data"
    expected = bytes(data.read_bytes())
    data.write_bytes(bytes(len(expected)))
    assert trainings_of(tmp_path, content(**keys))[0].checkpoint.sha256 != training.checkpoint.sha256
    data.write_bytes(expected)
    weights = read_weights(copy, training)
    assert all(torch.equal(weights[name], own[name]) for name in own)


def test_a_network_has_the_file_s_digest_and_one_seed(tmp_path, saved):
    (training,) = trainings_of(tmp_path, content(source=SOURCE))
    assert (training.method, training.epochs, training.seed, training.train.eps) == ("trained elsewhere", 0, 0, None)
    file = training.checkpoint
    assert (file.file, file.sha256) == ("net.pt", digest_of((tmp_path / "net.pt").read_bytes()))
    assert (training.source.method, training.source.certified_accuracy) == ("Box", 80)
    assert_same(read(tmp_path, content()), saved)
    trained = {"model": "cnn5", "method": "ibp"}
    mixed = changed(("trials", [content()["trials"][0], trained]), ("seeds", [3, 4]))
    assert [(t.model, t.seed) for t in trainings_of(tmp_path, mixed)] == [("conv", 3), ("cnn5", 3), ("cnn5", 4)]


def test_neither_the_recipe_of_others_nor_the_radius_changes_it(tmp_path, saved):
    (alone,) = trainings_of(tmp_path, content())
    entries = [content()["trials"][0], {"model": "cnn5", "method": "ibp"}]
    beside = trainings_of(tmp_path, changed(("trials", entries), ("seeds", [0]), ("train_images", 77), ("eps", "1/9")))[
        0
    ]
    assert beside == alone and beside.key("data") == alone.key("data")


def test_another_file_is_another_network_and_another_folder_is_not(tmp_path, saved):
    (first,) = trainings_of(tmp_path, content())
    (tmp_path / "below").mkdir()
    os.rename(tmp_path / "net.pt", tmp_path / "below/net.pt")
    (moved,) = trainings_of(tmp_path, content(checkpoint="below/net.pt"))
    assert moved == first
    torch.save(state(), tmp_path / "net.pt")
    assert trainings_of(tmp_path, content())[0] != first


def test_safetensors_prefixes_nested_mappings_and_normalisation(tmp_path, saved):
    save_file(saved, tmp_path / "net.safetensors")
    assert_same(read(tmp_path, content(checkpoint="net.safetensors")), saved)
    nested = {
        "epoch": 7,
        "model": {f"net.{name}": tensor for name, tensor in saved.items()},
        "optimiser": [{"step": 1}],
    }
    torch.save(nested, tmp_path / "nested.pt")
    keys = {"file": "nested.pt", "prefix": "model.net.", "mean": [0.25], "std": [0.5]}
    assert_same(read(tmp_path, content(checkpoint=keys)), saved, mean=0.25, std=0.5)


def test_weights_of_this_harness_keep_their_normalisation(tmp_path):
    network = build("cerdeq", "digits", WIDTH)
    fold(network)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    weights = read(tmp_path, content(model="cerdeq", checkpoint="weights.safetensors"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    keys = {"file": "weights.safetensors", "mean": [0.0], "std": [1.0]}
    message = refusal(tmp_path, content(model="cerdeq", checkpoint=keys))
    assert "mean: found [0.0], allowed: nothing, for the file has normalize.mean" in message


def test_by_order_takes_a_plain_sequential(tmp_path, saved):
    names = ["0.weight", "0.bias", "3.weight", "3.bias", "5.weight", "5.bias"]
    torch.save(dict(zip(names, saved.values(), strict=True)) | {"extra": torch.ones(1)}, tmp_path / "net.pt")
    assert_same(read(tmp_path, content(checkpoint={"file": "net.pt", "keys": "by-order", "ignore": ["extra"]})), saved)
    message = refusal(tmp_path, content(checkpoint={"file": "net.pt", "keys": "by-order"}))
    assert "found 7 tensors, 0.weight, 0.bias" in message and "allowed: 6, conv.weight" in message
    message = refusal(tmp_path, content())
    assert "the file has no tensor conv.weight (" in message and "it has 0.weight" in message
    assert "write `keys: by-order`" in message


def own_module(shape, classes, width):
    return OwnModule(shape, classes)


class OwnModule(nn.Module):
    """Two parts, one of them wrapped alone, as in ImageNet's example of VGG."""

    def __init__(self, shape, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(shape[0], 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.head = nn.Linear(2 * 36, classes)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


WRAPPERS = {
    "bare": "{}",
    "of DataParallel": "module.{}",
    "of torch.compile in DataParallel": "module._orig_mod.{}",
    "of the harness": "network.{}",
}


@pytest.mark.parametrize("has_counters", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_wrapper_s_name_and_counters_of_batches_are_not_the_user_s_business(
    tmp_path, monkeypatch, wrapper, has_counters
):
    """Files of torch 0.3 and 0.4 have no counters: torch's strict=True takes them."""
    monkeypatch.setitem(registry._BUILDERS, "own", own_module)
    module = own_module((1, 8, 8), 10, 1)
    torch.nn.init.uniform_(module.features[1].running_mean)
    saved = {name: tensor for name, tensor in module.state_dict().items() if has_counters or "num_b" not in name}
    wrapped = {WRAPPERS[wrapper].format(name): tensor for name, tensor in saved.items()}
    if not has_counters:
        wrapped = {name.replace("features.", "features.module."): tensor for name, tensor in wrapped.items()}
    torch.save(wrapped, tmp_path / "net.pt", _use_new_zipfile_serialization=has_counters)
    for keys in ("by-name", "by-order"):
        weights = read(tmp_path, content(model="own", width=1, checkpoint={"file": "net.pt", "keys": keys}))
        assert_same(weights, {f"network.{name}": tensor for name, tensor in module.state_dict().items()})


class Clash(nn.Module):
    """`module.bias` and `bias` are two tensors."""

    def __init__(self, shape, classes, width):
        super().__init__()
        self.module, self.bias = nn.Linear(64, 10), nn.Parameter(torch.rand(10))

    def forward(self, x):
        return self.module(x.flatten(1)) + self.bias


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_attribute_called_like_a_wrapper_is_kept_where_names_would_clash(tmp_path, monkeypatch, wrapper):
    monkeypatch.setitem(registry._BUILDERS, "own", Clash)
    own = Clash((1, 8, 8), 10, 1).state_dict()
    torch.save({WRAPPERS[wrapper].format(name): tensor for name, tensor in own.items()}, tmp_path / "net.pt")
    weights = read(tmp_path, content(model="own", width=1))
    assert_same(weights, {f"network.{name}": tensor for name, tensor in own.items()})


@pytest.mark.parametrize(
    ("wrap", "hint"),
    [
        (
            lambda own: {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in own.items()}},
            "write `prefix: state_dict.`",
        ),
        (
            lambda own: {"model": own, "ema": {"shadow": own | {"decay": torch.ones(1)}}},
            "write `prefix: model.` or `prefix: ema.shadow.`",
        ),
        (
            lambda own: {"net": dict(enumerate(own.values())), "optimiser": own["conv.bias"]},
            "write `prefix: net.` with `keys: by-order`",
        ),
        (lambda own: dict(enumerate(own.values())), "write `keys: by-order`"),
        (lambda own: {"net": dict(list(own.items())[1:])}, "If only the names differ, write `keys: by-order`"),
    ],
)
def test_the_hint_names_the_prefix_that_fits(tmp_path, wrap, hint):
    own = state()
    torch.save(wrap(own), tmp_path / "net.pt")
    message = refusal(tmp_path, content())
    assert "the file has no tensor conv.weight" in message and f"{hint} (network" in message, message
    if "prefix" in hint:
        keys = {"prefix": re.search("prefix: (.*?)`", hint)[1], "keys": "by-order" if "order" in hint else "by-name"}
        assert_same(read(tmp_path, content(checkpoint={"file": "net.pt", **keys})), own)


class Code:
    """What a pickle could run."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def write_nothing(path, tensors):
    path.unlink()


def write_code(path, tensors):
    path.write_bytes(pickle.dumps({"net": Code()}, protocol=2))


def write_zipped_code(path, tensors):
    torch.save(tensors | {"net": Code()}, path)


def write_part(path, tensors):
    path.write_bytes(path.read_bytes()[:-200])


def write_text(path, tensors):
    path.write_text("no weights")


def write_damaged_safetensors(path, tensors):
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-4])


def write_changed(**changes):
    """Save the tensors with some of them changed; None removes one."""

    def write(path, tensors):
        changed = tensors | {name.replace("__", "."): change for name, change in changes.items()}
        torch.save({name: value for name, value in changed.items() if value is not None}, path)

    return write


def write_unlike(name, change):
    def write(path, tensors):
        torch.save(tensors | {name: change(tensors[name])}, path)

    return write


def loop(path, tensors):
    content = [tensors]
    content.append(content)
    torch.save(content, path)


def nest(path, tensors):
    """Lists of which each holds the next one ten times: a billion tensors in 2 kB."""
    content = [tensors]
    for _ in range(9):
        content = [content] * 10
    torch.save(content, path)


def pack(path, tensors):
    """A file as torch saves it, packed by zip: a thousandth of its size, if it holds zeros."""
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


FILES = [
    (write_nothing, "found no file", "allowed: a file; in a sweep file, by its path relative to that"),
    (write_code, "found a pickle that wants to run", "allowed: a safetensors file, or a torch file of tensors alone"),
    (write_zipped_code, "found a pickle that wants to run", "system", "tensors alone"),
    (write_part, "found a file that torch cannot read"),
    (write_text, "found a file that torch cannot read"),
    (loop, "the file has no tensor conv.weight"),
    (nest, "the file has no tensor conv.weight"),
    (pack, "packed by zip, allowed: a file as torch.save writes it"),
    (write_damaged_safetensors, "found a damaged safetensors file", "allowed: an undamaged file"),
    (write_changed(linear1__bias=None), "the file has no tensor linear1.bias (float32 [10])", "it has conv.weight"),
    (write_changed(other=torch.ones(2)), "found the tensor other, allowed: ", "list a tensor that is not needed"),
    (write_unlike("conv.bias", lambda t: t.double()), "conv.bias: found float64 [2], allowed: float32 [2]"),
    (write_unlike("conv.bias", lambda t: t[:, None]), "conv.bias: found float32 [2, 1], allowed: float32 [2]"),
    (write_unlike("conv.bias", lambda t: t.to_sparse()), "conv.bias: found sparse_coo float32 [2]"),
    (write_unlike("conv.bias", lambda t: t * torch.nan), "conv.bias: found NaN or infinity, allowed: finite numbers"),
    (write_changed(normalize__mean=torch.zeros(1, 1, 1)), "the file has no tensor normalize.std"),
]


@pytest.mark.parametrize(("damage", "parts"), [(damage, parts) for damage, *parts in FILES])
def test_a_wrong_file_is_refused_by_sweep_key_and_checkpoint(tmp_path, monkeypatch, saved, damage, parts):
    monkeypatch.chdir(tmp_path)
    damage(tmp_path / "net.pt", saved)
    message = refusal(tmp_path, content())
    for part in (f"{tmp_path}/study.yaml: trials.0.checkpoint", str(tmp_path / "net.pt"), *parts):
        assert part in message, message
    assert len(message.splitlines()) == 1 and not Path("ran").exists()


KEYS = [
    ({"keys": {"method": "ibp"}}, "trials.0.method: found 'ibp', allowed: nothing beside `checkpoint`"),
    ({"keys": {"train": {"epochs": 3}}}, "trials.0.train: found {'epochs': 3}, allowed: nothing beside `checkpoint`"),
    ({"keys": {"method_options": {"alpha": 1}}}, "trials.0.method_options: found {'alpha': 1}, allowed: nothing"),
    ({"checkpoint": {"file": "net.pt", "sha256": "0" * 64}}, "checkpoint.sha256: found '", f"allowed: {'0' * 64}"),
    ({"checkpoint": {"file": "net.pt", "sha256": "x"}}, "checkpoint.sha256: found 'x': String should match pattern"),
    ({"checkpoint": {"file": "net.pt", "mean": [0.5]}}, "checkpoint.std: found None, allowed: as many numbers as mean"),
    (
        {"checkpoint": {"file": "net.pt", "mean": [0.5], "std": [0]}},
        "checkpoint.std: found [0.0], allowed: numbers above",
    ),
    ({"checkpoint": {"file": "net.pt", "mean": [0, 0], "std": [1, 1]}}, "mean: found [0.0, 0.0], allowed: 1 number"),
    (
        {"checkpoint": {"file": "net.pt", "keys": "sorted"}},
        "checkpoint.keys: found 'sorted': Input should be 'by-name', ",
    ),
    ({"checkpoint": {"file": "net.pt", "prefix": "net."}}, "prefix: found 'net.', allowed: one that tensors"),
    (
        {"checkpoint": {"file": "net.pt", "ignore": ["x"]}},
        "ignore: found 'x', allowed: a tensor of the file: conv.weight",
    ),
    ({"checkpoint": {"path": "net.pt"}}, "checkpoint.path: unknown key; allowed: file, prefix"),
    ({"checkpoint": "."}, "checkpoint"),
    ({"checkpoint": 3}, "trials.0.checkpoint: found 3"),
    ({"keys": {"source": {"paper": "x"}}}, "trials.0.source.method: missing"),
    ({"keys": {"source": SOURCE | {"clean_accuracy": 101}}}, "source.clean_accuracy: found 101", "or equal to 100"),
    ({"keys": {"options": {"depth": 3}}}, "trials.0.options.depth: unknown option of conv"),
]


@pytest.mark.parametrize(("wrong", "parts"), [(wrong, parts) for wrong, *parts in KEYS])
def test_a_key_that_does_not_fit_is_refused(tmp_path, saved, wrong, parts):
    keys = {"checkpoint": wrong.get("checkpoint", "net.pt"), **wrong.get("keys", {})}
    message = refusal(tmp_path, content(*wrong.get("changes", []), **keys))
    for part in (f"{tmp_path}/study.yaml: ", *parts):
        assert part in message, message


def test_a_source_and_a_missing_method_need_a_checkpoint(tmp_path, saved):
    message = refusal(tmp_path, changed(("trials.0.source", SOURCE)))
    assert "trials.0.source: found {'paper': 'Someone 2022'" in message and "give a `checkpoint`" not in message
    message = refusal(tmp_path, changed(("trials.0", {"model": "cnn5"})))
    assert "trials.0.method: missing; allowed: plain, " in message and "or `checkpoint` instead" in message


def test_a_search_is_refused_beside_a_checkpoint(tmp_path, saved):
    search = {"spaces": {"train.learning_rate": {"uniform": [1e-4, 1e-3]}}, "trials": 2}
    message = refusal(tmp_path, content(("search", search)))
    assert "trials.0.model: found 'conv', allowed: networks without a checkpoint beside `search`" in message


def test_by_order_needs_a_file_with_an_order(tmp_path, saved):
    save_file(saved, tmp_path / "net.safetensors")
    message = refusal(tmp_path, content(checkpoint={"file": "net.safetensors", "keys": "by-order"}))
    assert "keys: found 'by-order', allowed: by-name, for safetensors files do not keep" in message


def test_lists_of_files_and_sources_advance_together(tmp_path, saved):
    torch.save(state(), tmp_path / "other.pt")
    keys = {"file": ["net.pt", "other.pt"], "mean": [0.5], "std": [0.5], "ignore": []}
    source = {"paper": "Someone", "method": ["Box", "Zono"], "certified_accuracy": [80, None]}
    zipped = ["checkpoint.file", "source.method", "source.certified_accuracy"]
    trainings = trainings_of(tmp_path, content(checkpoint=keys, source=source, zip=zipped))
    found = [(t.checkpoint.file, t.source.method, t.source.certified_accuracy) for t in trainings]
    assert found == [("net.pt", "Box", 80), ("other.pt", "Zono", None)]


def test_a_wrong_checkpoint_exits_with_2_and_starts_nothing(refused, tmp_path, saved):
    write_code(tmp_path / "net.pt", saved)
    message = refused(write(tmp_path, content()))
    assert "study.yaml: trials.0.checkpoint: " in message and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("key", "value", "setting"),
    [
        ("seeds", [0, 1], "all seeds but the first (no entry is trained)"),
        ("train", {"kappa": 0.5}, "train.kappa (the network is trained elsewhere)"),
        ("train_images", 9, "train_images (no entry is trained)"),
        ("width", 0.5, "width (each entry has its own)"),
    ],
)
def test_a_setting_that_no_network_from_a_file_uses_is_a_warning(tmp_path, saved, key, value, setting):
    (warning,) = load_sweep(write(tmp_path, content((key, value))), "full", True).warnings
    assert setting in warning
