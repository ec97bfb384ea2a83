"""Images of a user's own, in each form from files to a leaderboard, and what is refused."""

import os
import unicodedata
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.datasets
import yaml
from fake_data import encoded
from PIL import Image
from torchvision.datasets.vision import VisionDataset

import harness
from harness.checker.evaluation import load_hashed
from harness.command_line import main
from harness.common.errors import InputError
from harness.common.radius import Radius
from harness.config.own_data import OwnData
from harness.data import load
from harness.leaderboard import table
from harness.leaderboard.files import write_leaderboard
from harness.leaderboard.literature import read_literature
from harness.storage import folder
from harness.storage.lock import lock_directory

CLASSES = ("cat", "dog", "owl")
SWEEP = {
    "name": "own",
    "eps": "1/100",
    "seeds": [0],
    "width": 0.1,
    "train": {"epochs": 1, "batch_size": 6, "ramp_epochs": 0, "decay_epochs": []},
    "evaluation": {"stages": ["ibp"], "attack_steps": 1, "attack_restarts": 1},
    "trials": [{"model": "cnn5", "method": "ibp"}],
}


def pictures(count, seed, size=8, channels=3):
    """Images uint8 [count, size, size, channels], each brighter with its class, and the classes' numbers."""
    rng, labels = np.random.default_rng(seed), np.arange(count) * 3 // count
    noise = rng.integers(0, 60, (count, size, size, channels))
    return (noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels


TRAIN, TEST = pictures(18, 0), pictures(9, 1)


def write_folder(path, images, labels, first=0):
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start=first):
        (path / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path / CLASSES[label] / f"{number:03}.png")


def folders(path):
    write_folder(path / "my_images" / "train", *TRAIN)
    write_folder(path / "my_images" / "test", *TEST)
    return {"folder": "my_images"}


def arrays(path, **changes):
    content = {"x_train": TRAIN[0], "y_train": TRAIN[1][:, None], "x_test": TEST[0], "y_test": TEST[1]} | changes
    np.savez(path / "my_arrays.npz", **{name: array for name, array in content.items() if array is not None})
    return {"arrays": "my_arrays.npz"}


def tables(path):
    (path / "my_tables").mkdir()
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        column = [encoded(image.transpose(2, 0, 1)) for image in images]
        if split == "test":
            column = [{"bytes": each, "path": ""} for each in column]
        names = [CLASSES[label] for label in labels]
        pq.write_table(pa.table({"image": column, "label": names}), path / "my_tables" / f"{split}.parquet")
    return {"parquet": "my_tables"}


class Signs(VisionDataset):
    """As GTSRB: a root and a split, and a download."""

    downloads: ClassVar = []

    def __init__(self, root, split="train", download=False):
        super().__init__(root)
        file = Path(root) / "signs.txt"
        if download:
            file.write_text("")
            self.downloads.append(file)
        if not file.exists():
            raise RuntimeError("Dataset not found")
        if split not in ("train", "test"):
            raise ValueError(split)
        self.images, self.labels = TRAIN if split == "train" else TEST

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        return Image.fromarray(self.images[number]), int(self.labels[number])


class Letters(Signs):
    """As EMNIST: a split of another meaning, and train handed on."""

    def __init__(self, root, split, train=True):
        assert split == "letters"
        super().__init__(root, "train" if train else "test")


def signs(path):
    return {"torchvision": "Signs"}


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Signs", Signs, raising=False)
    monkeypatch.setattr(torchvision.datasets, "Letters", Letters, raising=False)


def run(path, dataset, **changes):
    """Train the small sweep without Ray and write its leaderboard; return the sweep's directory."""
    (path / "own.yaml").write_text(yaml.safe_dump(SWEEP | {"dataset": dataset} | changes))
    results = path / "results"
    with lock_directory(results / "own"):  # so that it only trains
        assert main("run", ["--here", str(path / "own.yaml"), "--results-dir", str(results)]) == 0
    write_leaderboard(results / "own")
    return results / "own"


@pytest.mark.parametrize(
    ("write", "name", "classes"),
    [
        (folders, "my_images", CLASSES),
        (arrays, "my_arrays", ("0", "1", "2")),
        (tables, "my_tables", CLASSES),
        (signs, "Signs", ("0", "1", "2")),
    ],
)
def test_own_images_become_a_leaderboard(pretended, tmp_path, capsys, write, name, classes):
    (tmp_path / "files").mkdir()
    directory = run(tmp_path / "files", write(tmp_path / "files"))
    out = capsys.readouterr().out
    mean, std = (getattr(TRAIN[0] / 255, what)(axis=(0, 1, 2)).round(4) for what in ("mean", "std"))
    shown = f"3 x 8 x 8, 3 classes ({', '.join(classes)}), mean {' '.join(map(str, mean))}, deviation"
    assert f"own: {name}; 1 network, " in out and "evaluation: eps 1/100, ibp, all test images" in out
    assert "data: 18 training and 9 test images from" in out and shown in out
    (network_dir,) = folder.network_folders(directory)
    (evaluation_dir,) = folder.evaluation_folders(network_dir)
    record, result = folder.read_training(network_dir / folder.TRAINING), folder.read_result(evaluation_dir)
    assert result.data["fingerprint"] == record.fingerprint and result.data["class_names"] == list(classes)
    np.testing.assert_allclose(result.data["std"], std, atol=1e-4)
    assert f"{name}, profile full, eps 1/100" in (directory / "leaderboard.md").read_text()
    data_dir = [] if write is signs else ["--data-dir", str(tmp_path / "files")]
    assert main("recheck", [str(directory), *data_dir]) == 0
    model = harness.load(network_dir)
    assert model.normalize.mean.flatten().tolist() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ({"folder": "/"}, "a path below the data directory"),
        ({"arrays": "{elsewhere}/my_arrays.npz"}, "a path below the data directory"),
        ({"folder": "{here}/link"}, "a path below the data directory"),
        ({"arrays": "{here}/pipe.npz"}, "a file that exists"),
        ({"folder": "{here}/pipes"}, "a folder of files and folders alone"),
        ({"torchvision": "Signs", "options": {"annotations": "/etc/passwd"}}, "no paths"),
        ({"torchvision": "Signs"}, "Dataset not found"),
    ],
)
def test_a_recheck_reads_no_images_but_the_user_s_and_downloads_none(pretended, tmp_path, monkeypatch, source, allowed):
    """The paths are those that results record, which others may have written."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "pipes/train/cat").mkdir(parents=True)
    elsewhere.mkdir()
    arrays(elsewhere)
    os.mkfifo(here / "pipe.npz")
    os.mkfifo(here / "pipes/train/cat/0.png")
    (here / "link").symlink_to(elsewhere)
    monkeypatch.chdir(here)
    paths = {"here": here, "elsewhere": elsewhere}
    source = {key: value.format(**paths) if isinstance(value, str) else value for key, value in source.items()}
    source = source if "torchvision" in source else {"name": "images", **source}
    with pytest.raises(InputError, match=allowed):
        load_hashed(OwnData(**source), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_recheck_reads_the_user_s_images_at_their_path_or_in_the_data_directory(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    source = OwnData(**arrays(tmp_path / "a")).relative_to(tmp_path / "a")
    expected = load(source).fingerprint
    assert load_hashed(source, tmp_path).fingerprint == load_hashed(source, tmp_path / "a").fingerprint == expected
    monkeypatch.chdir(tmp_path)
    assert load_hashed(source).fingerprint == expected
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(InputError, match="a path below the data directory"):
        load_hashed(source)
    (tmp_path / "a").rename(tmp_path / "c")
    assert load_hashed(source, tmp_path / "c").fingerprint == expected


def test_the_fingerprint_and_the_key_are_of_the_content_and_not_of_path_or_file_names(tmp_path):
    for number, name in enumerate(("a", "b")):
        for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
            order = np.random.default_rng(number).permutation(len(labels))
            write_folder(tmp_path / name / "my_images" / split, images[order], labels[order], first=100 * number)
    source = OwnData(folder="my_images")
    first, second = (load(source.relative_to(tmp_path / name)) for name in "ab")
    assert first.fingerprint == second.fingerprint and first.info == second.info
    (tmp_path / "a" / "my_images").rename(tmp_path / "my_images")
    assert load(source.relative_to(tmp_path / "gone"), tmp_path).fingerprint == first.fingerprint, "found by --data-dir"
    write_folder(tmp_path / "my_images" / "train", TRAIN[0][:1] + 1, [0], first=900)
    assert load(source.relative_to(tmp_path)).fingerprint != first.fingerprint


def test_a_moved_folder_is_found_again_by_the_same_network(tmp_path):
    (tmp_path / "old").mkdir()
    directory = run(tmp_path / "old", folders(tmp_path / "old"))
    (network_dir,) = folder.network_folders(directory)
    (tmp_path / "old").rename(tmp_path / "new")
    run(tmp_path / "new", {"folder": "my_images"})
    (again,) = folder.network_folders(tmp_path / "new" / "results" / "own")
    assert again.name == network_dir.name
    assert folder.read_training(again / folder.TRAINING).config.data_source.folder == str(
        tmp_path / "new" / "my_images"
    )


def test_one_folder_is_split_by_a_fixed_draw_and_mixed_before_a_share_is_taken(tmp_path):
    write_folder(tmp_path / "all", *pictures(60, 2))
    source = OwnData(folder="all", test_share=0.2).relative_to(tmp_path)
    data, again = load(source), load(source, writes=False)
    assert (len(data.train), len(data.test)) == (48, 12) and data.fingerprint == again.fingerprint
    assert data.test_images(12).labels.unique().tolist() == [0, 1, 2], "not those of the first folder alone"
    together = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 60, "no image is on both sides"


@pytest.mark.parametrize("axes", ["NHWC", "NCHW", "NHW"])
def test_arrays_are_read_with_their_channels_first_last_or_missing(tmp_path, axes):
    images = {split: part[0] for split, part in (("x_train", TRAIN), ("x_test", TEST))}
    forms = {"NHWC": lambda x: x, "NCHW": lambda x: x.transpose(0, 3, 1, 2), "NHW": lambda x: x[..., 0]}
    source = OwnData(**arrays(tmp_path, **{name: forms[axes](array) for name, array in images.items()}))
    data = load(source.relative_to(tmp_path))
    expected = TRAIN[0].transpose(0, 3, 1, 2)[:, : 1 if axes == "NHW" else 3]
    assert data.info.shape == expected.shape[1:]
    assert sorted(map(bytes, data.train.images.numpy())) == sorted(map(bytes, np.ascontiguousarray(expected)))


def test_sizes_that_differ_are_refused_with_two_of_them_or_resized(tmp_path):
    source = folders(tmp_path)
    Image.new("L", (9, 7)).save(tmp_path / "my_images" / "test" / "owl" / "wide.png")
    with pytest.raises(InputError, match=r"cat/000\.png: 8 x 8 pixels .*owl/wide\.png: 7 x 9; allowed: one size"):
        load(OwnData(**source).relative_to(tmp_path))
    data = load(OwnData(**source, size=[6, 5]).relative_to(tmp_path))
    assert data.info.shape == (3, 6, 5), "grey became RGB beside colour"


def test_a_class_of_torchvision_is_downloaded_into_the_data_directory_and_takes_options(pretended, tmp_path):
    root = tmp_path / "data"
    with pytest.raises(InputError, match=r"torchvision\.datasets\.Signs\(split='train'\): cannot be read: .*not found"):
        load(OwnData(torchvision="Signs"), root, writes=False)
    load(OwnData(torchvision="Signs"), root)
    assert Signs.downloads[-2:] == [root / "signs.txt"] * 2 or Signs.downloads[-1:] == [root / "signs.txt"]
    assert load(OwnData(torchvision="Letters", options={"split": "letters"}), root).info.classes == 3
    with pytest.raises(InputError, match=r"Letters\(train=True\): cannot be read: TypeError"):
        load(OwnData(torchvision="Letters"), root)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Signs", {"split": "train"}),
        ("Signs", {"download": True}),
        ("Signs", {"root": "/"}),
        ("Letters", {"split": "letters", "train": True}),
    ],
)
def test_options_of_torchvision_leave_root_download_and_the_splits_alone(pretended, tmp_path, kind, options):
    """Else training images were the test images, too, or a dry run downloaded."""
    load(OwnData(torchvision="Signs"), tmp_path)
    with pytest.raises(InputError, match=r"dataset\.options: found .*, allowed: arguments of .* other than "):
        load(OwnData(torchvision=kind, options=options), tmp_path, writes=False)


def change(**content):
    return lambda path: arrays(path, **content)


WRONG = {  # what is written, further keys, the message
    "no such folder": (lambda path: {"folder": "my_imgs"}, {}, "dataset.folder: found '.*my_imgs', allowed: a folder"),
    "no test images": (change(x_test=None, y_test=None), {}, "found no test images, allowed: .*test_share"),
    "no labels": (change(y_test=None), {}, "y_test: found the arrays x_train, y_train, x_test, allowed"),
    "floats": (change(x_train=TRAIN[0] / 255), {}, r"x_train: found float64 \[18, 8, 8, 3\], allowed: uint8"),
    "fewer labels": (change(y_train=TRAIN[1][1:]), {}, "x_train: found 18 images and 17 labels"),
    "pickles": (change(y_test=np.array([{}] * 9)), {}, "cannot be read: ValueError: Object arrays cannot be loaded"),
    "a new class": (change(y_test=TEST[1] + 1), {}, r"x_test\[\d\]: found the class 3, allowed: those of training"),
    "one class": (change(y_train=0 * TRAIN[1], y_test=0 * TEST[1]), {}, "of the class 0 alone, allowed: 2 classes"),
    "a resized array": (arrays, {"size": 4}, "allowed with `size`"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_by_file_and_what_was_found(pretended, tmp_path, capsys, case):
    write, further, expected = WRONG[case]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(SWEEP | {"dataset": write(tmp_path) | further}))
    assert main("run", ["--here", str(tmp_path / "own.yaml"), "--results-dir", str(tmp_path / "results")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}/own.yaml: ") and "Traceback" not in message
    with pytest.raises(InputError, match=expected):
        raise InputError(message)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"folder": "a", "arrays": "b"}, "dataset.folder, arrays, parquet, torchvision: found ['folder', 'arrays']"),
        ({"folder": "cifar10"}, "dataset.name: found 'cifar10', allowed: letters"),
        ({"folder": "a", "size": [0, 8]}, "dataset.size: found [0, 8], allowed"),
        (["cifar10"], "dataset: found ['cifar10'], allowed: cifar10, "),
    ],
)
def test_wrong_keys_are_refused_before_torch_is_imported(tmp_path, capsys, dataset, expected):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(SWEEP | {"dataset": dataset}))
    assert main("run", [str(tmp_path / "own.yaml")]) == 2
    assert f"own.yaml: {expected}" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    source = OwnData(**folders(tmp_path)).relative_to(tmp_path)
    path = tmp_path / "my_images" / "train" / "owl" / "deep.png"
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"owl/deep\.png: found pixels of Pillow's mode I;16, allowed: 8 bits"):
        load(source)
    path.write_bytes(b"GIF")
    with pytest.raises(InputError, match=r"owl/deep\.png: found b'GIF'\.\.\., allowed: an encoded image"):
        load(source)
    path.unlink()
    (empty := tmp_path / "my_images" / "train" / "yak").mkdir()
    with pytest.raises(InputError, match=r"train/yak: found no images, allowed: a folder for each class"):
        load(source)
    empty.rmdir()
    (tmp_path / "my_images" / "test").rename(tmp_path / "my_images" / "val")
    with pytest.raises(InputError, match=r"found train/ alone, allowed: train/ and test/, or neither"):
        load(source)


def black(size):
    """An image that is 1,000 times as large as its file."""
    return encoded(np.zeros((3, size, size), np.uint8))


def packed(path, image, label):
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": image, "label": label}), path / f"{split}.parquet", compression="zstd")
    return {"parquet": "."}


BOMBS = {  # each needs 4 MB or more, from files of 20 kB
    "one image in many rows": lambda path: packed(path, [black(300)] * 20, [0, 1] * 10),
    "bytes that are no images": lambda path: packed(path, [bytes(2**22), b""], [0, 1]),
    "many rows": lambda path: packed(path, pa.array([b""] * 500_000), pa.array([0] * 500_000)),
    "a long label in many rows": lambda path: packed(path, [black(9)] * 200, ["a", "b" * 9_000] * 100),
    "arrays": lambda path: np.savez_compressed(path / "x.npz", x_train=np.zeros((2, 999, 999, 3), np.uint8)),
    "pictures": lambda path: write_folder(path, np.zeros((2, 999, 999, 3), np.uint8), [0, 1]),
}


@pytest.mark.parametrize("case", BOMBS)
def test_files_that_are_small_beside_what_they_hold_are_refused_before_memory_runs_out(tmp_path, monkeypatch, case):
    monkeypatch.setattr("harness.data.reading._ALWAYS_ALLOWED", 2**20)
    (path := tmp_path / "bomb").mkdir()
    source = BOMBS[case](path) or ({"arrays": "x.npz"} if case == "arrays" else {"folder": "."})
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 20_000
    with pytest.raises(InputError, match=r"found [\d,]+ bytes of images, unpacked, allowed in so small files: 1,\d"):
        load(OwnData(name="own", test_share=0.5 if case == "pictures" else None, **source).relative_to(path))


def ink(rng, alpha, mode="RGBA"):
    """Black strokes on a clear ground, as an image of Pillow; a pixel of full alpha is white in its own colours."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 3] = rng.choice([0, alpha], (8, 8))
    pixels[0, 0] = 200, 200, 200, 255
    image = Image.fromarray(pixels)
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(("alpha", "mode"), [(255, "RGBA"), (128, "RGBA"), (255, "LA"), (255, "PA")])
def test_transparent_images_are_composed_over_white_and_a_warning_says_so(tmp_path, alpha, mode):
    rng = np.random.default_rng(0)
    images = [ink(rng, alpha, mode) for _ in range(12)]
    for number, image in enumerate(images):
        path = tmp_path / "my_images" / ("train", "test")[number % 2] / "ab"[number // 6]
        path.mkdir(parents=True, exist_ok=True)
        image.save(path / f"{number}.tif" if mode == "PA" else path / f"{number}.png")
    source = OwnData(folder=str(tmp_path / "my_images"))
    for _ in range(2):  # decoded, and from the cache
        data = load(source, tmp_path)
        assert data.warnings == ("12 of 12 images are transparent: they are composed over white",)
        assert len({image.numpy().tobytes() for image in [*data.train.images, *data.test.images]}) == 12
        assert data.train.images.max() == 255 and (data.train.images[..., 0, 0] == 200).all()
        assert data.train.images.min() == (0 if alpha == 255 else 127)


def turned(source):
    """Save the small images as photographs in `train` and `test`, each turned in the file and with the tag for it."""
    undo = {3: 2, 6: 1, 8: 3}  # quarter turns that a viewer undoes
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            tag = (1, 3, 6, 8)[number % 4]
            exif = Image.Exif()
            exif[0x0112] = tag
            path = source / split / CLASSES[label]
            path.mkdir(parents=True, exist_ok=True)
            stored = np.rot90(image[:, :6], undo.get(tag, 0))
            Image.fromarray(np.ascontiguousarray(stored)).save(path / f"{number:03}.png", exif=exif)


def test_photographs_are_oriented_as_their_tag_says_then_measured_and_counted(tmp_path):
    turned(tmp_path / "photographs")
    upright = {split: (images[:, :, :6], labels) for split, (images, labels) in (("train", TRAIN), ("test", TEST))}
    for split, part in upright.items():
        write_folder(tmp_path / "upright" / split, *part)
    first, second = (load(OwnData(folder=str(tmp_path / name)), tmp_path) for name in ("photographs", "upright"))
    assert first.info.shape == (3, 8, 6), "no file in another size, as viewers show them"
    assert (first.fingerprint, first.info.mean) == (second.fingerprint, second.info.mean)
    assert first.warnings == ("19 of 27 images are turned as the orientation in their EXIF data says",)
    assert second.warnings == ()


def test_images_in_parquet_are_oriented_too(tmp_path):
    turned(tmp_path / "photographs")
    for split in ("train", "test"):
        files = sorted((tmp_path / "photographs" / split).rglob("*.png"))
        column, names = [file.read_bytes() for file in files], [file.parent.name for file in files]
        pq.write_table(pa.table({"image": column, "label": names}), tmp_path / f"{split}.parquet")
    by_folder = load(OwnData(folder=str(tmp_path / "photographs")), tmp_path)
    by_table = load(OwnData(parquet=str(tmp_path), name="tables"), tmp_path)
    assert (by_table.fingerprint, by_table.warnings) == (by_folder.fingerprint, by_folder.warnings)


def test_what_pillow_reads_as_a_still_image_is_read_and_the_rest_is_counted_by_ending(tmp_path):
    path = tmp_path / "my_images"
    grey = [np.full((8, 8), number, np.uint8) for number in range(40)]
    kinds = ["jfif", "gif", "JPG", "ppm", "tga", "png"]
    for number in range(24):
        place = path / ("train", "test")[number % 2] / "ab"[number // 12]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey[number]).save(place / f"{number}.{kinds[number % 6]}")
    frames = [Image.fromarray(image) for image in grey[30:33]]
    frames[0].save(path / "train/a/moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(path / "train/a/phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    frames[0].save(path / "lost.png")
    for name in ("test/a/film.mp4", "test/b/film.MP4", "train/a/drawing.eps", "train/b/README", "labels.csv"):
        (path / name).write_text("no image")
    data = load(OwnData(folder=str(path)), tmp_path)
    assert (len(data.train), len(data.test)) == (13, 12)
    left_out = ".eps (1), .mp4 (2), animated GIF (1), images outside of class folders (1), no ending (1)"
    assert data.warnings == (f"files left out: {left_out}",)


def test_hidden_folders_are_no_classes_and_hidden_files_no_images(tmp_path):
    expected = load(OwnData(**folders(tmp_path)).relative_to(tmp_path)).fingerprint
    path = tmp_path / "my_images" / "train"
    for name in (".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "cat/._000.png"):
        (path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(path / name)
    (path / ".DS_Store").write_text("no image")
    data = load(OwnData(folder=str(tmp_path / "my_images")))
    assert (data.fingerprint, data.warnings) == (expected, ("files left out: hidden images (3)",))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_class_whose_name_is_composed_here_and_decomposed_there_is_one(tmp_path, kind):
    forms = {split: unicodedata.normalize(form, "tür") for split, form in (("train", "NFC"), ("test", "NFD"))}
    source = OwnData(**(folders(tmp_path) if kind == "folder" else tables(tmp_path))).relative_to(tmp_path)
    for split, name in forms.items():
        if kind == "folder":
            (tmp_path / "my_images" / split / "owl").rename(tmp_path / "my_images" / split / name)
        else:
            table = pq.read_table(file := tmp_path / "my_tables" / f"{split}.parquet").to_pydict()
            labels = [name if label == "owl" else label for label in table["label"]]
            pq.write_table(pa.table(table | {"label": labels}), file)
    data = load(source)
    assert data.info.class_names == ("cat", "dog", "t\u00fcr")
    assert data.warnings == (
        "the class t\u00fcr is written in 2 Unicode forms, 'tu\\u0308r' and 't\\xfcr': it is one class",
    )


def test_a_link_to_a_class_is_followed_and_its_changes_are_seen(tmp_path):
    source = OwnData(**folders(tmp_path)).relative_to(tmp_path)
    expected = load(source).fingerprint
    (tmp_path / "my_images/train/cat").rename(tmp_path / "cats")
    (tmp_path / "my_images/train/cat").symlink_to(tmp_path / "cats")
    assert load(source).fingerprint == expected
    Image.new("RGB", (8, 8)).save(tmp_path / "cats/new.png")
    assert load(source).fingerprint != expected


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path):
    images, labels = TRAIN
    for name, transform in (("plain", lambda image: image), ("opaque", lambda image: image.convert("RGBA"))):
        for number, label in enumerate(labels):
            path = tmp_path / name / CLASSES[label]
            path.mkdir(parents=True, exist_ok=True)
            transform(Image.fromarray(images[number])).save(path / f"{number}.png")
    plain, opaque = (
        load(OwnData(folder=str(tmp_path / name), test_share=0.2), tmp_path) for name in ("plain", "opaque")
    )
    assert plain.fingerprint == opaque.fingerprint and plain.warnings == opaque.warnings == ()


def test_equal_images_are_a_warning_and_not_ordered_by_their_labels(tmp_path, capsys):
    labels = np.arange(80) % 2
    source = arrays(tmp_path, x_train=np.zeros((80, 8, 8), np.uint8), y_train=labels, x_test=None, y_test=None)
    data = load(OwnData(arrays=str(tmp_path / source["arrays"]), test_share=0.5), tmp_path)
    assert data.warnings == ("all 80 images are equal",)
    assert 10 < data.test.labels.sum() < 30, "not one class before the other"
    np.savez(tmp_path / "my_arrays.npz", x_train=np.zeros((80, 8, 8), np.uint8), y_train=np.sort(labels))
    assert torch.equal(
        load(OwnData(arrays=str(tmp_path / "my_arrays.npz"), test_share=0.5), tmp_path).test.labels, data.test.labels
    )
    images = TRAIN[0].copy()
    images[17] = images[0]
    changed = arrays(tmp_path, x_train=images)
    data = load(OwnData(arrays=str(tmp_path / changed["arrays"])), tmp_path)
    (warning,) = data.warnings
    assert warning.startswith("2 of 27 images are equal to one of another class: such as ")
    assert "my_arrays.npz: x_train[0] (0) and " in warning and "x_train[17] (2)" in warning
    directory = run(tmp_path, changed)
    assert f"warning: {warning}" in capsys.readouterr().out
    assert warning in (directory / "leaderboard.md").read_text()


def test_published_numbers_do_not_stand_beside_own_data(tmp_path, monkeypatch):
    papers = read_literature(tmp_path).assign(dataset="my_images", exact=Radius("1/100"))
    monkeypatch.setattr(table, "read_literature", lambda _: papers)
    directory = run(tmp_path, folders(tmp_path))
    assert len(table.build_leaderboard(directory).sections[0].rows) == 1


def test_a_named_data_directory_must_be_there(tmp_path, capsys, monkeypatch):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(SWEEP | {"dataset": "mnist"}))
    missing = tmp_path / "mistyped"
    assert main("run", ["--here", str(tmp_path / "own.yaml"), "--data-dir", str(missing)]) == 2
    assert f"--data-dir: found '{missing}', allowed: a directory that exists" in capsys.readouterr().err
    monkeypatch.setenv("CERDEQ_DATA", str(missing))
    assert main("tables", [str(tmp_path)]) == 2
    assert f"CERDEQ_DATA: found '{missing}'" in capsys.readouterr().err
    assert not missing.exists()
