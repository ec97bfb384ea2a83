"""`plugins:` of a sweep file: what is imported, what can be named then, what is refused, and how keys follow it."""

import sys

import pytest
from small_sweep import changed, trials_of, write

from baselines import DATASETS, registry
from cerdeq.rules import operators
from harness.config import plugins
from harness.config.sweep_file import load_sweep
from harness.config.sweep_text import ConfigError
from harness.config.trial import trial_key
from harness.errors import InputError
from harness.methods import METHODS
from harness.storage import folder
from harness.training import run_trial

NETS = """
from torch import nn
from baselines import register

@register("flat")
def flat(shape, classes, width=1.0, sizes: tuple[int, ...] = (8,)):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, sizes[0]), nn.ReLU(), nn.Linear(sizes[0], classes))

def plain(shape, classes, width=1.0):
    return flat(shape, classes)

three = 3
"""
ALONE = """
from torch import nn

def body(shape, classes, width=1.0):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""

NAMESAKES = """
from own.nets import flat

def body(shape, classes, width=1.0, early_iterations: int = 1, backward_iterations: int = 1, warm_start: bool = False):
    return flat(shape, classes)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function of files to a package `own` that can be imported; what it registers is forgotten by the next one."""
    tables = registry._BUILDERS, METHODS, DATASETS, operators._by_function
    known = [dict(table) for table in tables]

    def forget():
        for table, before in zip(tables, known, strict=True):
            table.clear()
            table.update(before)
        for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
            del sys.modules[name]
        plugins._import.cache_clear()
        plugins._digest.cache_clear()

    def make(**files):
        forget()
        (tmp_path / "own").mkdir(exist_ok=True)
        for name, text in {"__init__": "", "nets": NETS, **files}.items():
            (tmp_path / "own" / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    forget()


def own(*changes, modules=("own.nets",), model="flat"):
    """A sweep of one network of a plugin."""
    return changed(("plugins", list(modules)), ("trials", [{"model": model, "method": "ibp"}]), *changes)


def test_a_network_that_cannot_be_built_without_values_is_refused(package, tmp_path):
    package(nets=ALONE.replace("10)", "int(nn.Linear(2, 2).weight.sum() * 0) + 10)"))
    with pytest.raises(InputError, match=r"model: 'own.nets:body' cannot be built on torch's device 'meta'"):
        trials_of(tmp_path, own(model="own.nets:body"))


def test_an_option_without_a_type_takes_anything(package, tmp_path):
    package(nets=ALONE.replace("width=1.0)", "width=1.0, wide=None)"))
    (first, *_) = trials_of(tmp_path, own(("trials.0.options", {"wide": 3}), model="own.nets:body"))
    assert first.options == {"wide": 3}


def test_what_a_plugin_registers_can_be_named_and_trials_record_it(package, tmp_path, capsys):
    package()
    content = own(("trials.0.options", {"sizes": [4]}), ("profiles", {"small": {"seeds": [7]}}))
    (first, *_) = trials_of(tmp_path, content)
    assert (first.model, first.options) == ("flat", {"sizes": (4,)}), "by its type a list, and no choice"
    assert list(first.plugins) == ["own.nets"] and len(first.plugins["own.nets"]) == 16
    assert capsys.readouterr().err == f"plugin own.nets: imported from {tmp_path / 'own/nets.py'}\n", "once"


def test_an_option_that_is_called_as_one_of_an_equilibrium_s_is_the_network_s_own(package, tmp_path):
    package(namesakes=NAMESAKES)
    options = {"early_iterations": 2, "backward_iterations": 2, "warm_start": True}
    trials = [{"model": "own.namesakes:body", "method": "plain", "options": options}]
    ramp = {"epochs": 4, "batch_size": 64, "ramp_epochs": 0, "decay_epochs": []}
    content = own(("trials", trials), ("train", ramp), modules=("own.namesakes",))
    assert trials_of(tmp_path, content)[0].options == options


def test_a_function_of_a_plugin_is_a_network_without_being_registered(package, tmp_path):
    package(alone=ALONE)
    trials = trials_of(tmp_path, own(modules=["own"], model=["own.nets:plain", "own.alone:body"]))
    assert {trial.model for trial in trials} == {"own.nets:plain", "own.alone:body"}


IMPORTED = "allowed: a module that can be imported; importing it ended with"
BELOW = "allowed: module:function, the module one of `plugins` or below one:"
WRONG = {  # plugins, the network, the message
    "no such package": (["owm.nets"], "flat", "plugins: found 'owm.nets', allowed: a module that Python finds"),
    "no such module": (["own.nts"], "flat", f"'own.nts', {IMPORTED} ModuleNotFoundError: No module named 'own.nts'"),
    "a path": (["own/nets.py"], "flat", "plugins: found 'own/nets.py', allowed: the name of a module"),
    "one name": ("own.nets", "flat", "plugins: found 'own.nets', allowed: a list of names of modules"),
    "what raises": (["own.broken"], "flat", f"plugins: found 'own.broken', {IMPORTED} ZeroDivisionError: division"),
    "a network's name": (["own.network"], "flat", f"{IMPORTED} ValueError: network 'cnn7' is registered twice"),
    "a method's": (["own.method"], "flat", f"{IMPORTED} ValueError: training method 'ibp' is registered twice"),
    "what has a rule": (["own.operator"], "flat", f"{IMPORTED} ValueError: operator 'relu': <built-in method relu"),
    "a function from elsewhere": (["own.nets"], "os:system", f"trials.0.model: found 'os:system', {BELOW} own.nets"),
    "one without plugins": ([], "own.nets:flat", f"found 'own.nets:flat', {BELOW} there are none"),
    "no such function": (
        ["own.nets"],
        "own.nets:deep",
        "trials.0.model: found 'own.nets:deep', allowed: a function of",
    ),
    "no chain of layers": (["own.net"], "own.net:net", "found Linear, allowed: an nn.Sequential"),
    "an unknown network": (["own.nets"], "flt", "trials.0.model: found 'flt', allowed: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_the_file_and_the_key(case, package, tmp_path):
    package(
        alone=ALONE,
        broken="1 / 0",
        network="from baselines import register\nregister('cnn7')(lambda shape, classes, width: None)",
        method="from harness.methods import METHODS, register\nregister(METHODS['ibp'])",
        operator="import torch\nfrom cerdeq.bounds import Operator, register\n"
        "register(Operator('relu', lambda ctx, x: x, (torch.relu,)))",
        net="from torch import nn\ndef net(shape, classes, width):\n    return nn.Linear(64, 10)",
    )
    modules, model, expected = WRONG[case]
    with pytest.raises(ConfigError) as error:
        load_sweep(write(tmp_path, own(("plugins", modules), model=model)), "full", True)
    assert str(error.value).startswith(f"{tmp_path}/study.yaml: ") and expected in str(error.value)


def test_a_wrong_plugin_ends_the_command_before_anything_starts(refused, package, tmp_path):
    package(broken="1 / 0")
    assert "study.yaml: plugins: found 'own.broken'" in refused(write(tmp_path, own(modules=["own.broken"])))


def test_a_key_follows_the_source_of_the_whole_package_and_nothing_else(package, tmp_path):
    def keys(**files):
        package(**files)
        return [trial_key(trial, "data") for trial in trials_of(tmp_path, own())]

    before = keys()
    (tmp_path / "own/notes.txt").write_text("of no matter")
    assert keys() == before
    assert not set(keys(helper="x = 1")) & set(before)


def test_a_trial_is_refused_where_its_plugin_is_another(package, tiny_trial, tmp_path):
    package()
    config = tiny_trial("own.nets:plain", plugins=plugins.digests(["own.nets"]), train={"epochs": 1, "ramp_epochs": 1})
    assert run_trial(config, tmp_path / "trial").metrics
    package(nets=NETS + "\n")
    (tmp_path / "trial" / folder.RESULT).unlink()
    with pytest.raises(InputError, match=r"own.nets:plain ibp seed 0: plugins.own.nets: found .* train anew"):
        run_trial(config, tmp_path / "trial")
