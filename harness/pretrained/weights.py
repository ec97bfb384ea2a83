"""Read the weights of a network that was trained elsewhere, and check them against the network's tensors."""

import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from baselines import Dataset, build
from baselines.registry import options_of
from baselines.shared_tensors import complete, differing_names
from cerdeq.equilibrium import fold
from cerdeq.onnx import OnnxError, load_content
from harness.common.errors import InputError, error_line, require
from harness.pretrained.mondeq import is_matlab, network_tensors, read_matlab
from harness.pretrained.network_file import NetworkFile, read_file

Tensors = dict[str, Tensor]

_MEAN, _STD = "normalize.mean", "normalize.std"
_INNER = ("module", "_orig_mod")
_WRAPPERS = ("network.", *(f"{name}." for name in _INNER))
"""What names begin with below `baselines.build`, and of DataParallel and torch.compile."""
_SHOWN = 6
"""How many names a message lists."""


class Imported(Protocol):
    """What a trial says of a network trained elsewhere."""

    @property
    def checkpoint(self) -> NetworkFile | None: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def width(self) -> float: ...  # noqa: D102
    @property
    def options(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def data_info(self) -> Dataset: ...  # noqa: D102


def read_weights(path: Path, config: Imported) -> Tensors:
    """Return the tensors of a trial's network, its normalisation included, from its network file.

    config: of a network trained elsewhere. Raises InputError where the file cannot be read, is another one, or does not
    hold exactly the network's tensors, finite, in their shapes and types.
    """
    network_file = config.checkpoint
    assert network_file is not None
    content = read_file(path, network_file)
    with torch.random.fork_rng(devices=[]):
        network = build(config.model, config.data_info, config.width, **config.options)
    fold(network)
    try:
        if network_file.is_onnx:  # the tensors' names are those of the network `onnx`
            state = load_content(content, path).state_dict()
            loaded = {f"network.{name}": tensor for name, tensor in state.items()}
        else:
            loaded = _load(content, network_file)
        tensors = _select(loaded, network_file)
        if network_file.keys == "mondeq":
            options, image = options_of(config.model), config.data_info.shape
            require("keys", "mondeq", "modulus" in options, "only for the network 'monotone'")
            tensors = network_tensors(tensors, config.options.get("modulus", options["modulus"].default), image)
        return _match(tensors, network, network_file, loaded)
    except (InputError, OnnxError) as error:
        raise InputError(f"checkpoint: {path}: {error} (network {config.model!r})") from None


def _load(content: bytes, network_file: NetworkFile) -> Tensors:
    """Return all tensors of a file. The names of nested mappings are joined by dots."""
    if content[8:9] == b"{":  # a header in JSON follows its length
        by_order = network_file.keys == "by-order"
        require("keys", "by-order", not by_order, "by-name, for safetensors files do not keep the order of tensors")
        try:
            return safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise InputError(
                f"found a damaged safetensors file ({error_line(error)}), allowed: an undamaged file"
            ) from None
    if is_matlab(content):
        return read_matlab(content)
    allowed = "a safetensors file, or a torch file of tensors alone: torch.save(network.state_dict(), FILE)"
    try:
        _refuse_packed(content)
        with warnings.catch_warnings(action="ignore"):  # such as that tensors are sparse
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return dict(_flatten(loaded, "", set()))
    except InputError:
        raise
    except Exception as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = (
            f"a pickle that wants to run {code[1]}"
            if code
            else f"a file that torch cannot read ({error_line(error)[:120]})"
        )
        raise InputError(f"found {found}, allowed: {allowed}") from None


def _refuse_packed(content: bytes) -> None:
    """Raise InputError for a torch file that is packed, which torch.save never does: unpacked, it may have any size."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            packed = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise InputError(f"found {packed[0]!r} packed by zip, allowed: a file as torch.save writes it")


def _flatten(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a value with their names; whatever is no tensor is left out.

    seen: the mappings and lists so far. Each is read once: a file of 2 kB can nest one list a billion times.
    """
    if isinstance(value, Tensor):
        yield name, value.detach()
    if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _flatten(inner, f"{name}.{key}" if name else str(key), seen)


def _select(tensors: Tensors, network_file: NetworkFile) -> Tensors:
    """Return the tensors to load, without the prefix in their names.

    Raises InputError if no tensor has the prefix or a name of `ignore`.
    """
    names = _names(tensors)
    for name in network_file.ignore:
        require("ignore", name, name in tensors, f"a tensor of the file: {names}")
    prefix = network_file.prefix
    selected = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    require("prefix", prefix, bool(selected), f"one that tensors of the file have: {names}")
    return {name.removeprefix(prefix): selected[name] for name in selected if name not in network_file.ignore}


def _match(tensors: Tensors, network: nn.Module, network_file: NetworkFile, loaded: Tensors) -> Tensors:
    """Return the network's tensors by its own names. Raises InputError unless the file has exactly these.

    loaded: all tensors of the file, for the message.
    """
    expected, by_order = network.state_dict(), network_file.keys == "by-order"
    found = _names(name for name in tensors if name not in (_MEAN, _STD))
    count, own = len(tensors), [name for name in expected if name not in (_MEAN, _STD)]
    tensors = _rename(tensors, expected, by_order)
    if by_order and not tensors:
        hint = _hint(loaded, expected, network_file)
        raise InputError(f"found {count} tensors, {found}, allowed: {len(own)}, {_names(own)}{hint}")
    tensors = _normalisation(tensors, expected, network_file) | _counters(expected) | tensors
    tensors = complete(tensors, network)
    if missing := [name for name in expected if name not in tensors]:
        hint = _hint(loaded, expected, network_file)
        if not hint and not by_order:
            hint = ". If only the names differ, write `keys: by-order`"
        raise InputError(f"the file has no tensor {missing[0]} ({_kind(expected[missing[0]])}); it has {found}{hint}")
    if unexpected := [name for name in tensors if name not in expected]:
        allowed = f"{_names(expected)}; list a tensor that is not needed in `ignore`"
        raise InputError(f"found the tensor {unexpected[0]}, allowed: {allowed}")
    for name, tensor in tensors.items():
        kind, allowed = _kind(tensor), _kind(expected[name])
        if kind != allowed:
            raise InputError(f"tensor {name}: found {kind}, allowed: {allowed}")
        if not tensor.isfinite().all():
            raise InputError(f"tensor {name}: found NaN or infinity, allowed: finite numbers")
    if problems := differing_names(tensors, network):
        raise InputError(problems[0])
    return {name: tensors[name].clone().contiguous() for name in expected}


def _rename(tensors: Tensors, expected: Tensors, by_order: bool) -> Tensors:
    """Return a file's tensors by the network's names. By order, none where their number is another one.

    By name, the names of wrappers count on neither side; tensors that the network does not have keep their names.
    """
    if by_order:
        own = [name for name in expected if name not in (_MEAN, _STD)]
        if len(tensors) != len(own):
            own = [name for name in own if name not in _counters(expected)]
        return dict(zip(own, tensors.values(), strict=True)) if len(tensors) == len(own) else {}
    own_names = {bare: name for name, bare in _bare_names(expected).items()}
    return {own_names.get(bare, name): tensors[name] for name, bare in _bare_names(tensors).items()}


def _bare_names(names: Iterable[str]) -> dict[str, str]:
    """Return names without those of wrappers: what all begin with, and within them where they stay different."""
    bare = {name: name for name in names}
    others = [name for name in bare if name not in (_MEAN, _STD)]
    while others and (first := next((w for w in _WRAPPERS if all(bare[n].startswith(w) for n in others)), None)):
        bare |= {name: bare[name].removeprefix(first) for name in others}
    inner = {name: ".".join(part for part in text.split(".") if part not in _INNER) for name, text in bare.items()}
    return inner if len(set(inner.values())) == len(inner) else bare


def _counters(expected: Tensors) -> Tensors:
    """Return the numbers of batches that batch norms have seen: files of torch 0.3 have none; nothing reads them."""
    return {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}


def _hint(loaded: Tensors, expected: Tensors, network_file: NetworkFile) -> str:
    """Return the end of a message that names settings which fit the file; empty if there are none."""
    groups: dict[str, list[str]] = {"": []}
    for name in loaded:
        if name not in network_file.ignore:
            for prefix in ("", *(name[: match.end()] for match in re.finditer(r"\.", name))):
                groups.setdefault(prefix, []).append(name)
    needed = expected.keys() - _counters(expected).keys() - {_MEAN, _STD}
    for by_order in (False, True):
        fits: list[str] = []
        for prefix in sorted(groups, key=len):
            tensors = {name.removeprefix(prefix): loaded[name] for name in groups[prefix]}
            tensors = _rename(tensors, expected, by_order) if len(tensors) >= len(needed) else {}
            if tensors.keys() >= needed and all(tensors[name].shape == expected[name].shape for name in needed):
                fits += [] if any(prefix.startswith(shorter) for shorter in fits) else [prefix]
        if fits:
            order = "`keys: by-order`" if by_order else ""
            prefixes = " or ".join(f"`prefix: {prefix}`" for prefix in fits if prefix)
            return f". To load it, write {' with '.join(filter(None, [prefixes, order]))}"
    return ""


def _normalisation(tensors: Tensors, expected: Tensors, network_file: NetworkFile) -> Tensors:
    """Return mean and deviation of the network's first layer, unless the file has them."""
    mean, std = (values and list(values) for values in (network_file.mean, network_file.std))
    channels = len(expected[_MEAN])
    if _MEAN in tensors or _STD in tensors:
        require("mean", mean, mean is None, f"nothing, for the file has {_MEAN}")
        return {}
    are_enough = mean is None or len(mean) == channels
    require("mean", mean, are_enough, f"{channels} number{'s' if channels > 1 else ''}, one for each channel")
    values = {_MEAN: mean or [0.0] * channels, _STD: std or [1.0] * channels}
    return {name: torch.tensor(numbers).view_as(expected[name]) for name, numbers in values.items()}


def _names(names: Any) -> str:
    """Return the first names as text, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) + more) or "none"


def _kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f"{tensor.layout} "
    return f"{layout}{tensor.dtype} {list(tensor.shape)}".replace("torch.", "")
