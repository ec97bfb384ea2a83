"""`plugins:` of a sweep file: what is imported, what can be named then, what is refused, and how keys follow it."""

import sys

import pytest
from one_network import train_and_evaluate
from small_sweep import changed, refusal, trainings_of, write

from baselines import registry
from harness.command_line import main
from harness.common.errors import InputError
from harness.common.method_names import METHODS
from harness.config import plugin_sources, plugins
from harness.data import load
from harness.storage import folder
from harness.storage.records import Result, make_record

NETS = """
from torch import nn
from baselines import register

@register("flat")
def flat(shape, classes, width=1.0, sizes: tuple[int, ...] = (8,)):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, sizes[0]), nn.ReLU(), nn.Linear(sizes[0], classes))

def plain(shape, classes, width=1.0):
    return flat(shape, classes)
"""
BODY = """
from torch import nn

def body(shape, classes, width=1.0, early_iterations: int = 1, warm_start: bool = False, wide=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def layers(shape, classes, width):
    return [nn.Flatten(), nn.Linear(64, 10)]
"""
BROKEN = """
from dataclasses import dataclass
from harness.methods import Method, register

@register
@dataclass(frozen=True)
class Broken(Method):
    name = "broken-loss"

    def loss(self, program, batch):
        return batch.images.mean()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function of files to a package `own` that can be imported; what it registered is forgotten by the next one."""
    registry.import_networks()
    builders = dict(registry._BUILDERS)

    def make(**files):
        monkeypatch.setattr(registry, "_BUILDERS", dict(builders))
        for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
            del sys.modules[name]
        plugins._import.cache_clear()
        plugin_sources.digest.cache_clear()
        (tmp_path / "own").mkdir(exist_ok=True)
        for name, text in {"__init__": "", "nets": NETS, **files}.items():
            (tmp_path / "own" / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    return make


def own(*changes, modules=("own.nets",), model="flat"):
    """A sweep of one network of a plugin."""
    return changed(("plugins", list(modules)), ("trials", [{"model": model, "method": "ibp"}]), *changes)


def test_what_a_plugin_registers_can_be_named_and_trainings_record_it(package, tmp_path, capsys):
    package()
    content = own(("trials.0.options", {"sizes": [4]}), ("profiles", {"small": {"seeds": [7]}}))
    (first, *_) = trainings_of(tmp_path, content)
    assert (first.model, first.options) == ("flat", {"sizes": [4]}), "by its type a list, and no choice"
    assert list(first.plugins) == ["own.nets"] and len(first.plugins["own.nets"]) == 16
    assert capsys.readouterr().err == f"plugin own.nets: imported from {tmp_path / 'own/nets.py'}\n", "once"


def test_an_option_with_the_name_of_an_equilibrium_s_is_the_network_s_own(package, tmp_path):
    package(nets=BODY)
    options = {"early_iterations": 2, "warm_start": True, "wide": 3}
    trials = [{"model": "own.nets:body", "method": "plain", "options": options}]
    ramp = {"epochs": 4, "batch_size": 64, "ramp_epochs": 0, "decay_epochs": []}
    assert trainings_of(tmp_path, own(("trials", trials), ("train", ramp)))[0].options == options


def test_a_function_of_a_plugin_is_a_network_without_being_registered(package, tmp_path):
    package(alone=BODY)
    trials = trainings_of(tmp_path, own(modules=["own"], model=["own.nets:plain", "own.alone:body"]))
    assert {trial.model for trial in trials} == {"own.nets:plain", "own.alone:body"}


WRONG = {  # the source of own.nets, what is changed in the sweep, the message
    "no such package": (NETS, [("plugins", ["owm.nets"])], "plugins: found 'owm.nets', allowed: a module that Python"),
    "an error": ("1 / 0", [], "plugins: found 'own.nets', allowed: a module that can be imported; importing it ended"),
    "the name of another network": (
        "from baselines import register\nregister('cnn7')(lambda shape, classes, width: None)", [],
        "ValueError: network 'cnn7' is registered twice",
    ),
    "a function from elsewhere": (NETS, [("trials.0.model", "os:system")], "trials.0.model: found 'os:system'"),
    "one without plugins": (NETS, [("plugins", []), ("trials.0.model", "own.nets:plain")], "there are none"),
    "no such function": (NETS, [("trials.0.model", "own.nets:deep")], "model: module own.nets has no function 'deep'"),
    "no module": (BODY, [("trials.0.model", "own.nets:layers")], "found list, allowed: an nn.Module"),
    "weights that are read": (
        BODY.replace("10))", "int(nn.Linear(2, 2).weight.sum())))"), [("trials.0.model", "own.nets:body")],
        "cannot be built on torch's device 'meta'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plugin_is_refused_by_file_and_key(case, package, tmp_path):
    source, changes, expected = WRONG[case]
    package(nets=source)
    message = refusal(tmp_path, own(*changes))
    assert message.startswith(f"{tmp_path}/study.yaml: ") and expected in message


def test_a_key_follows_the_sources_that_a_plugin_imports_and_nothing_else(package, tmp_path):
    def keys(**files):
        package(**files)
        return [trial.key("data") for trial in trainings_of(tmp_path, own())]

    before = keys()
    (tmp_path / "own/notes.txt").write_text("of no matter")
    assert keys(unrelated="x = 1") == before, "a new file beside it"
    assert keys(__init__="y = 1") != before, "its package is imported with it"
    imports = "from own import deep\nfrom .wide import layer\nimport own.flat_ones as ones\n"
    files = {"wide": "layer = 1", "deep": "from . import deeper", "deeper": "x = 1", "flat_ones": "import json"}
    found = [keys(nets=imports + NETS, **files)]
    for name in files:
        found.append(keys(nets=imports + NETS, **files | {name: f"{files[name]}\nother = 2"}))
    assert len({key for each in found for key in each}) == len(found) * len(before)


def test_a_function_below_a_plugin_counts_with_its_module(package, tmp_path):
    def key(**files):
        package(**files)
        return trainings_of(tmp_path, own(modules=["own"], model="own.alone:body"))[0].key("data")

    assert key(alone=BODY) != key(alone=f"{BODY}\nx = 1\n")


def test_comments_docstrings_and_layout_leave_the_key(package, tmp_path):
    def key(nets):
        package(nets=nets)
        return plugins.digests(["own.nets"])

    shown = NETS.replace("def plain", "# why\ndef plain").replace("nn.ReLU(),", "nn.ReLU(),  # what\n    ")
    shown = shown.replace(
        "    return flat(shape, classes)", '    """How."""\n\n    return flat(shape,\n        classes)'
    )
    assert key(f'"""Networks."""\n{shown}') == key(NETS)
    assert key(NETS.replace("ReLU", "Tanh")) != key(NETS)
    assert key(f"{NETS}\nx = 1") != key(f"{NETS}\nx = True") != key(f"{NETS}\nx = '1'")


def test_a_digest_is_the_same_for_every_version_of_python(package):
    """Their syntax trees differ: type parameters, and empty texts in nested formats."""
    package(nets="def f(x, *a, k=None, **o) -> int:\n    return f'{x:>{k}.2f}{x!r}' if x is None else [x, 0.5, -1j]\n")
    assert plugins.digests(["own.nets"]) == {"own.nets": "2b927961d1f4ef90"}


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    """A function that writes a module beside the package `own`, in a folder of its own, and one that is installed."""

    def write_all(sibling, folder="y = 1", installed="z = 1"):
        (tmp_path / "own_helpers").mkdir(exist_ok=True)
        (tmp_path / "venv/site-packages").mkdir(parents=True, exist_ok=True)
        monkeypatch.syspath_prepend(tmp_path / "venv/site-packages")
        (tmp_path / "own_sibling.py").write_text(sibling)
        (tmp_path / "own_helpers/deep.py").write_text(folder)
        (tmp_path / "venv/site-packages/own_installed.py").write_text(installed)

    return write_all


def test_a_key_follows_what_a_plugin_imports_from_other_folders_of_the_user(package, helpers):
    """An activation in a sibling module was edited between two radii, and old rows stood beside new ones."""

    def digest(*sources):
        helpers(*sources)
        package(nets=f"import own_sibling, own_installed, json\n{NETS}")
        return plugins.digests(["own.nets"])["own.nets"]

    imports = "from own_helpers import deep\n"
    first = digest(f"{imports}slope = 1")
    assert digest(f"{imports}slope = 2") != first
    assert digest(f"{imports}slope = 1", "y = 2") != first, "what the sibling imports, from a folder without __init__"
    assert digest(f"{imports}slope = 1", "y = 1", "z = 2") == first, "installed packages are not the user's"
    names = plugin_sources.source_files("own.nets")
    assert set(names) == {"own", "own.nets", "own_sibling", "own_helpers.deep"}


def test_an_error_in_a_plugin_s_method_is_shown_with_its_line_and_the_log(package, tmp_path, capsys):
    package(methods=BROKEN)
    content = own(("plugins", ["own.methods"]), ("trials", [{"model": "cnn5", "method": "broken-loss", "width": 0.1}]))
    try:
        assert main("run", ["--here", str(write(tmp_path, content)), "--results-dir", str(tmp_path / "results")]) == 1
    finally:
        METHODS.pop("broken-loss")
    printed, (log, _) = capsys.readouterr().out, sorted(tmp_path.glob(f"results/study/networks/*/{folder.LOG}"))
    assert "AttributeError: 'Batch' object has no attribute 'images'" in printed
    line = BROKEN[: BROKEN.index("batch.images")].count("\n") + 1
    for part in (f"{tmp_path}/own/methods.py, line {line}); the log: ", str(log)):
        assert part.replace(" ", "") in "".join(printed.split())


def test_a_dry_run_says_that_a_plugin_has_changed(package, tmp_path, capsys, monkeypatch):
    small = {"epochs": 1, "batch_size": 64, "ramp_epochs": 0, "decay_epochs": []}
    content = own(("train", small), ("train_images", 64), ("seeds", [0, 1]), ("evaluation.test_images", 10))
    command = ["--here", str(write(tmp_path, content)), "--results-dir", str(tmp_path / "results")]
    package()
    assert main("run", command) == 0
    package(nets=f"# of no matter\n{NETS}")
    assert main("run", [*command, "--dry-run"]) == 0
    assert "has changed" not in capsys.readouterr().out
    package(nets=f"{NETS}\nx = 1")
    assert main("run", [*command, "--dry-run"]) == 0
    expected = "plugin own.nets has changed since 2 networks were trained: they are trained again, under other keys"
    assert expected in " ".join(capsys.readouterr().out.split())


def test_a_network_is_refused_where_its_plugin_is_another(package, tiny_training, tiny_evaluation, tmp_path):
    package()
    recipe = {"epochs": 1, "ramp_epochs": 1}
    config = tiny_training("own.nets:plain", plugins=plugins.digests(["own.nets"]), train=recipe)
    train_and_evaluate(config, [tiny_evaluation()], tmp_path / "network")
    package(nets=f"{NETS}\nx = 1\n")
    with pytest.raises(InputError, match=r"own.nets:plain ibp seed 0: plugins.own.nets: found .* train anew"):
        train_and_evaluate(config, [tiny_evaluation(eps="1/16")], tmp_path / "network")


COMMANDS = {"benchmark": ["cnn5", "--only", "bounds", "--images", "1", "--trained"], "tables": []}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_a_plugin_of_results_without_an_option_that_names_it(
    command, package, tiny_training, tiny_evaluation, tmp_path, monkeypatch, capsys
):
    """The results lie in the working directory, which Python searches first."""
    package(nets="raise SystemExit('imported')")
    config = tiny_training("own.nets:plain", plugins=plugins.digests(["own.nets"]))
    record = make_record(config, load("digits").fingerprint)
    network_dir = tmp_path / "results/networks" / record.key
    folder.begin_network(network_dir, record)
    (network_dir / folder.WEIGHTS).touch()
    evaluation_dir = folder.begin_evaluation(network_dir, tiny_evaluation())
    errors = dict.fromkeys(("certified_error", "attack_error", "standard_error"), 50.0)
    folder.write_trained(network_dir, Result(record.key, {}, {}, {}, []))
    folder.write_result(evaluation_dir, Result(f"{record.key}/{evaluation_dir.name}", errors, {}, {}, []))
    monkeypatch.chdir(tmp_path)
    path = network_dir if command == "benchmark" else network_dir.parents[1]
    status = main(command, [*COMMANDS[command], str(path)])
    assert "own" not in sys.modules and "own.nets" not in sys.modules
    if command != "tables":
        assert status == 2
        assert "it names the plugin own.nets; if you trust that, add --plugin own.nets" in capsys.readouterr().err


def test_a_teacher_s_plugin_needs_an_option_that_names_it_too(package, tiny_training):
    package(nets="raise SystemExit('imported')")
    teacher = tiny_training("own.nets:plain", plugins=plugins.digests(["own.nets"]))
    student = tiny_training("cnn5", teacher=teacher)
    with pytest.raises(InputError, match=r"it names the plugin own\.nets; if you trust that"):
        plugins.require_trusted(student, [])
    plugins.require_trusted(student, ["own.nets"])
