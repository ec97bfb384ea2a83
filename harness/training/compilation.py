"""Whether a trial's steps are compiled: where that works, and the training is long enough to earn it back."""

import copy
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines import DATASETS
from cerdeq.bounds import trace
from cerdeq.bounds.memory import is_out_of_memory
from harness.config.trial import TrialConfig
from harness.environment import cache_directory

# As measured on one core, of CNN-7 at four widths: compiled, an IBP step saves 8 to 21 ns, by machine, for each number
# that a clean pass writes, whatever its products cost; and compiling, nothing cached.
_SAVED_A_NUMBER = 1e-8
_SECONDS_A_LAYER = 4.0
_WORDS = 30  # of a compiler's message: the first line alone may name no cause
_LIMIT = 64  # of variants of one function: a network, a method and a count of iterations are one each


@dataclass(frozen=True)
class Decision:
    """How to train. compiled: whether steps are compiled. why: the reason, in a line. failed: compiling was wanted and
    does not work here."""

    compiled: bool
    why: str
    failed: bool = False


def decide(config: TrialConfig, model: nn.Module, images: int, device: torch.device, before: bool | None) -> Decision:
    """How to train `model` on so many images.

    before: how the trial's earlier epochs were trained, which decides; None where there are none. It depends on nothing
    but the arguments, the number of threads and whether compiling works here, so that repeats decide alike.
    """
    wanted = config.train.compile
    if wanted == "never" or before is False:
        return Decision(False, "eager steps, as the trial says" if wanted == "never" else "eager steps, as before")
    if wanted == "auto" and before is None and device.type == "cpu":
        examples = images // config.train.batch_size * config.train.batch_size * config.train.epochs
        saved = examples * _numbers(config, model) * _SAVED_A_NUMBER / torch.get_num_threads()
        compiling = _SECONDS_A_LAYER * len(trace(model).steps)
        estimate = f"about {saved / 60:.1f} min to be saved, {compiling / 60:.1f} min to compile"
        if saved < compiling:
            return Decision(False, f"eager steps: {estimate}, which would not pay")
    else:
        estimate = "as before" if before else "as the trial says" if wanted == "always" else "on a GPU"
    if (problem := compiler_problem(device.type)) is not None:
        return Decision(False, f"eager steps, since compiling does not work here: {problem}", failed=True)
    return Decision(True, f"compiled steps: {estimate}")


def prepare() -> None:
    """Forget what was compiled for other trials of this process, whose code would pile up; files are kept."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _LIMIT


def compiled_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss, compiled when it is called first, by kernels of which none is chosen by timing.

    Said to the compiler with each function: Dynamo puts back what is said of all, before the backward is compiled.
    """
    inductor: Any = import_module("torch._inductor.config")  # here, since it takes seconds
    options: dict[str, Any] = {"deterministic": True} if hasattr(inductor, "deterministic") else {}
    return torch.compile(loss, fullgraph=True, dynamic=False, options=options)


@functools.cache
def compiler_problem(device: str) -> str | None:
    """Why torch cannot compile for such a device here, in a line; None where it can."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache()))
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler, its headers and its cache may do
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split()[:_WORDS])}"
    return None


def _probe(x: Tensor) -> Tensor:
    return torch.relu(x) + 1


def _cache() -> Path:
    """Where compiled code is kept between runs."""
    place = cache_directory() / "compiled"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp())
    return place


@torch.no_grad()
def _numbers(config: TrialConfig, model: nn.Module) -> float:
    """How many numbers a clean pass on a CPU writes for one example more."""
    twin, shape, counts = copy.deepcopy(model), DATASETS[config.dataset].shape, []
    for examples in (2, 4):
        with _Counted() as counted:
            twin(torch.zeros(examples, *shape))
        counts.append(counted.numbers)
    return (counts[1] - counts[0]) / 2


class _Counted(TorchDispatchMode):
    """numbers: how many there are in outputs of operations, but for those that give a view or work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in function._schema.returns):
            self.numbers += sum(leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
        return outputs
