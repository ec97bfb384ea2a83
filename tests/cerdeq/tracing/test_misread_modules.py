"""Modules that torch.fx misreads: bounds refuse them, or contain what they compute."""

import array
import contextlib
import copy
import ctypes
import io
import math
import operator
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import Lambda
from torch import Tensor, nn

from cerdeq import Box, bound, verify
from cerdeq.bounds import Interval, Operator, UnsupportedOperator, register
from cerdeq.bounds.float32 import in_float32
from cerdeq.equilibrium import Equilibrium
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import read_network


class Network(nn.Module):
    """A layer that adds 10,000 to the last value, then `forward` of (the module, its values)."""

    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(4))
            self.layer.bias.copy_(torch.tensor([0, 0, 0, 1e4]))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, -1.0, 0.5]))
        self.function, self.calls = forward, 0

    def forward(self, x):
        return self.function(self, self.layer(x))


def constant_changed_after_use(module, x):
    c = torch.ones(4, dtype=torch.float64)
    y = x * c
    c += 4e-4
    return y


def constant_shared_with_numpy(module, x):
    array = np.ones(4)
    y = x * torch.from_numpy(array)
    array += 4e-4
    return y


def buffer_counts(module, x):
    module._buffers["scale"].data.add_(1)
    return x * module.scale


def counts(module, x):
    module.calls += 1
    return x if module.calls < 2 else 1.001 * x


def random(module, x):
    return x + torch.rand(4, dtype=torch.float64)


def swallows_the_error(module, x):
    with contextlib.suppress(Exception):
        x = x if x.sum() > 0 else 2 * x
    return x


def detached_alias(module, x):
    y = x + 0
    if isinstance(x, Tensor):
        y.detach().mul_(1.001)
    return y


FORWARDS = {
    "constant changed after its use": constant_changed_after_use,
    "constant shared with numpy": constant_shared_with_numpy,
    "buffer counts calls": buffer_counts,
    "counts calls": counts,
    "random": random,
    "try around a branch": swallows_the_error,
    "detached alias": detached_alias,
    "isinstance of a tensor": lambda m, x: F.relu(x) if isinstance(x, Tensor) else x,
}


def has_float32(module):
    return next(module.parameters()).dtype == torch.float32


class OwnCast(nn.LeakyReLU):
    """A layer whose slope follows its precision."""

    def _apply(self, function, recurse=True):
        self.negative_slope = 0.5 if function(torch.zeros(1)).dtype == torch.float64 else -5.0
        return super()._apply(function, recurse)


PRECISIONS = {
    "constant": lambda m, x: x - (20000.0 if has_float32(m) else 0.0),
    "slope": lambda m, x: F.leaky_relu(x - 20000, -5.0 if has_float32(m) else 0.5),
    "another step": lambda m, x: -x if has_float32(m) else x,
    "another attribute": lambda m, x: x + (m.low if has_float32(m) else m.high),
    "tensor of its precision": lambda m, x: x - torch.full((), torch.finfo(next(m.parameters()).dtype).eps) * 1e15,
    "option of a layer": lambda m, x: m.own(x - 20000),
    "value of its own type": lambda m, x: x - 20000 if isinstance(x, Tensor) and x.dtype == torch.float32 else x,
}


def asking(name):
    model = Network(PRECISIONS[name])
    with torch.no_grad():
        model.layer.bias.fill_(10000.0)
    model.own = OwnCast(-5.0)
    model.register_buffer("low", torch.full((), -20000.0))
    model.register_buffer("high", torch.full((), 20000.0))
    return model.eval()


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_forward_that_asks_for_its_precision_is_refused_or_bounded_rightly(name):
    """Verification proves in float64, also for float32 models; of a float64 model it first tries float32."""
    box = Box(torch.full((2, 4), 0.5), torch.full((2, 4), 0.5))
    spec = torch.eye(4).expand(2, -1, -1)
    for model, region in ((asking(name), box), (asking(name).double(), box.double())):
        try:
            result = verify(model, region, spec.to(region.center), branches=2)
        except UnsupportedOperator as error:
            assert "allowed" in str(error) or "test_misread_modules.py, line" in str(error), error
            continue
        assert min(y.min() for y in outputs(model, region)) > 0 or "certified" not in result.status
    assert name == "value of its own type" or in_float32(asking(name).double()) is None


def outputs(model, box):
    """Yield outputs [rows, K] at points of the box: of one, two and three examples, with gradients and without."""
    for fraction in (-1, -0.5, 0, 0.5, 1):
        x = box.center + fraction * box.radius
        for rows in (1, 2, 3):
            with torch.no_grad():
                yield model(x[:rows].clone())
            yield model(x[:rows].clone().requires_grad_().clone()).detach()


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_that_tracing_misreads_is_refused_or_bounded_rightly(name):
    """One output is large, which must not hide that others are wrong."""
    box = Box(torch.full((3, 4), 0.5).double(), torch.full((3, 4), 0.5).double())
    model = Network(FORWARDS[name]).double().eval()
    try:
        lower, upper = bound(model, box)
    except UnsupportedOperator as error:
        assert "allowed" in str(error) or "test_misread_modules.py, line" in str(error), error
        return
    for y in outputs(model, box):
        rounding = 4 * torch.finfo(y.dtype).eps * (1 + y.abs())
        assert (lower[: len(y)] <= y + rounding).all() and (y <= upper[: len(y)] + rounding).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_networks_whose_terms_cancel_are_not_refused(seed, dtype):
    """Each output is a millionth of its terms; torch sums them in other orders in other batches."""
    random = torch.Generator().manual_seed(seed)
    half = torch.randn(150, 3, generator=random, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 300), nn.ReLU(), nn.Linear(300, 3)).to(dtype).eval().requires_grad_(False)
    model[0].weight[:], model[0].bias[:] = 1e-6, 1000 * torch.rand(150, generator=random).repeat(2)
    model[2].weight[:] = torch.cat([half, -half]).T
    x = torch.rand(3, 1, dtype=dtype, generator=random)
    bound(model, Box(x, torch.full_like(x, 1e-3)), "ibp")
    verify(model, Box(x, torch.full_like(x, 1e-3)), torch.eye(3, dtype=dtype).expand(3, 3, 3), branches=0)


class OwnSize(nn.Module):
    """A transposed convolution whose size is an argument of its call."""

    def __init__(self, by_name):
        super().__init__()
        self.up, self.by_name = nn.ConvTranspose2d(1, 1, 3, stride=2), by_name

    def forward(self, x):
        return self.up(x, output_size=[6, 6]) if self.by_name else self.up(x, [6, 6])


@pytest.mark.parametrize("by_name", [False, True])
def test_an_argument_of_a_layers_call_that_its_rule_does_not_take_is_refused(by_name):
    box = Box(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(UnsupportedOperator, match=r"conv_transpose2d.* at node 'up' .*line \d+: return self.up"):
        bound(OwnSize(by_name).eval(), box)


@pytest.mark.parametrize("curve", [torch.sigmoid, torch.tanh])
def test_a_curve_that_torch_computes_in_float32_is_the_one_that_rules_know(curve):
    x = 10 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    lower, upper = bound(Lambda(lambda module, x: curve(x)).eval(), Box(x, torch.zeros_like(x)))
    assert (upper - lower <= 1e-6).all()


def test_an_output_that_depends_on_the_position_in_the_batch_is_refused():
    model = Lambda(lambda module, x: 5 - F.relu(x) - 2.25 * torch.arange(x.shape[0])[:, None]).eval()
    box = Box(torch.zeros(2, 4), torch.ones(2, 4))
    for refuse in (lambda: bound(model, box), lambda: verify(model, box, torch.eye(4).expand(2, -1, -1))):
        with pytest.raises(UnsupportedOperator, match="depends on other images in the batch"):
            refuse()


def test_an_infinite_region_hides_no_other_function():
    x = torch.rand(2, 4).double()
    with pytest.raises(UnsupportedOperator, match="misreads the model"):
        bound(Network(random).double().eval(), Box(x, torch.full_like(x, torch.inf)), "ibp")


def saved(d):
    stream = io.BytesIO()
    torch.save(d, stream)
    stream.seek(0)
    return torch.load(stream)


def written_into(d, constant, changed):
    """Return the number in a constant after a change of `changed`, which shares its memory."""
    changed.copy_(d)
    return constant.item()


class ReadsInside(torch.autograd.Function):
    """An identity that keeps a number."""

    @staticmethod
    def forward(ctx, d):
        ReadsInside.number = float(d)
        return d.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def by_own_function(d):
    ReadsInside.apply(d)
    return ReadsInside.number > 0


def is_positive(d: Tensor) -> bool:
    return bool(d > 0)


def address(d):
    return ctypes.c_double.from_address(d.data_ptr()).value > 0


def swallowed(d):
    try:
        return bool(d > 0)
    except Exception:
        return False


READS = {  # Python values that follow from d [], for d = x0 - x1 - 1.8 of the input: whether it is positive
    "len of nonzero": lambda d: len(torch.nonzero(d[None] > 0)),
    "shape of nonzero": lambda d: (d[None] > 0).nonzero().shape[0],
    "iteration of nonzero": lambda d: sum(1 for _ in torch.nonzero(d[None] > 0)),
    "nonzero as tuple": lambda d: torch.nonzero(d[None] > 0, as_tuple=True)[0].numel(),
    "count_nonzero": lambda d: torch.count_nonzero(d > 0),
    "mask": lambda d: d[None][d[None] > 0].shape[0],
    "masked_select": lambda d: torch.masked_select(d, d > 0).numel(),
    "where": lambda d: torch.where(d[None] > 0)[0].numel(),
    "argwhere": lambda d: len(torch.argwhere(d > 0)),
    "bincount": lambda d: len(torch.bincount((d > 0).long()[None])) > 1,
    "unique": lambda d: torch.stack([d.clamp(max=0), d]).unique().numel() > 1,
    "unique_consecutive": lambda d: torch.stack([d.clamp(max=0), d]).unique_consecutive().numel() > 1,
    "unique of a dimension": lambda d: len(torch.stack([d.clamp(max=0), d])[:, None].unique(dim=0)) > 1,
    "one_hot": lambda d: F.one_hot((d > 0).long()).numel() > 1,
    "repeat_interleave": lambda d: len(torch.ones(1).repeat_interleave((d > 0).long()[None])),
    "tensor_split": lambda d: len(torch.ones(2).tensor_split((d > 0).long()[None].cpu())[0]),
    "searchsorted": lambda d: len([0, 1][: torch.searchsorted(d.new_zeros(1), d)]),
    "slice of a tensor": lambda d: len(torch.ones(2)[: (d > 0).long()]),
    "size of a tensor": lambda d: torch.zeros((d > 0).long()).numel(),
    "arange": lambda d: len(torch.arange((d > 0).long())),
    "sparse": lambda d: d[None].clamp(min=0).to_sparse()._nnz(),
    "sparse indices": lambda d: d[None].clamp(min=0).to_sparse().indices().shape[1],
    "f-string": lambda d: not f"{d}".startswith("tensor(-") and not f"{d}".startswith("-"),
    "f-string with digits": lambda d: f"{d:+.3f}"[0] == "+",
    "format": lambda d: "-" not in format(d.item(), "g"),
    "percent s": lambda d: "-" not in "%s" % d,  # noqa: UP031
    "percent d": lambda d: "1" in "%d" % (d > 0),  # noqa: UP031
    "str": lambda d: "-" not in str(d).split("dtype")[0].split("grad_fn")[0],
    "repr": lambda d: "-" not in repr(d).split("dtype")[0].split("grad_fn")[0],
    "bool": lambda d: bool(d > 0),
    "if": lambda d: True if d > 0 else 0,
    "not": lambda d: not d <= 0,
    "and": lambda d: d > 0 and 1,
    "int": lambda d: int(d + 1) > 0,
    "float": lambda d: float(d) > 0,
    "complex": lambda d: complex(d).real > 0,
    "index": lambda d: operator.index((d > 0).long()),
    "list index": lambda d: [0, 1][(d > 0).long()],
    "range": lambda d: len(range((d > 0).long())),
    "floor": lambda d: math.floor(d) + 1 > 0,
    "contains": lambda d: True in (d > 0),
    "in a list": lambda d: (d > 0) in [True],
    "max": lambda d: max(d, d.new_zeros([])) is d,
    "sorted": lambda d: sorted([d, d.new_zeros([])])[1] is d,
    "item": lambda d: d.item() > 0,
    "tolist": lambda d: d.tolist() > 0,
    "numpy": lambda d: d.detach().numpy() > 0,
    "asarray": lambda d: np.asarray(d.detach()) > 0,
    "array of numpy": lambda d: np.array([d.detach(), 0])[0] > 0,
    "float64 of numpy": lambda d: np.float64(d.detach()) > 0,
    "dlpack to numpy": lambda d: np.from_dlpack(d.detach()) > 0,
    "dlpack": lambda d: torch.from_dlpack(d.detach()).item() > 0,
    "capsule": lambda d: torch.from_dlpack(torch.utils.dlpack.to_dlpack(d.detach())).item() > 0,
    "array": lambda d: array.array("d", d[None])[0] > 0,
    "bytes": lambda d: len(bytes((d > 0).to(torch.uint8))),
    "untyped_storage": lambda d: list(d.clone().untyped_storage())[7] < 128 and d.untyped_storage()[6],
    "storage": lambda d: d.clone().storage()[0] > 0,
    "data_ptr": address,
    "pickle": lambda d: pickle.loads(pickle.dumps(d.detach())).item() > 0,
    "save": lambda d: saved(d.detach()).item() > 0,
    "deepcopy": lambda d: copy.deepcopy(d.detach()).item() > 0,
    "copy": lambda d: copy.copy(d.detach()).item() > 0,
    "data": lambda d: d.data.item() > 0,
    "Tensor of a tensor": lambda d: torch.DoubleTensor(d.detach()[None]).item() > 0,
    "tensor of numbers": lambda d: torch.tensor([d.detach()]).item() > 0,
    "new_tensor": lambda d: d.new_tensor(d.detach()).item() > 0,
    "constant written into": lambda d: written_into(d.detach(), *[torch.zeros([]).double()] * 2) > 0,
    "view written into": lambda d: (lambda c: written_into(d.detach(), c, c.view(1)[0]))(torch.zeros([]).double()) > 0,
    "result written into": lambda d: torch.add(d.detach(), 0, out=torch.zeros([]).double()).item() > 0,
    "equal": lambda d: torch.equal(d.clamp(max=0), d * 0),
    "allclose": lambda d: torch.allclose(d.clamp(max=0), d * 0, atol=0),
    "isclose": lambda d: torch.isclose(d.clamp(max=0), d * 0, atol=0).all().item(),
    "is_nonzero": lambda d: torch.is_nonzero(d > 0),
    "operator of torch": lambda d: torch.ops.aten.item(d.detach()) > 0,
    "own autograd function": by_own_function,
    "script": lambda d: torch.jit.script(is_positive)(d),
    "swallowed": swallowed,
    "vmap": lambda d: torch.vmap(lambda v: v > 0)(d[None]).any().item(),
    "seed": lambda d: torch.Generator().manual_seed(int(d > 0)).initial_seed(),
}
FLOATS = {  # of a condition in operators alone, without a Python value
    "where": lambda d: torch.where(d > 0, 1.0, 0.0),
    "comparison": lambda d: (d > 0).double(),
    "step of relus": lambda d: F.relu(d * 1e6) - F.relu(d * 1e6 - 1),
}
KINDS = {"isinstance": lambda x: isinstance(x, Tensor), "type": lambda x: type(x) is Tensor}


class Reader(nn.Module):
    """ReLU(x0 + x1) + 3, from which `read` takes away 5 if it says that x0 - x1 is above 1.8."""

    def __init__(self, read, is_tensor=KINDS["isinstance"]):
        super().__init__()
        self.read, self.is_tensor = read, is_tensor

    def forward(self, x):
        d = x[:, :1] - x[:, 1:] - 1.8
        y = F.relu(x[:, :1] + x[:, 1:]) + 3 + 0 * d
        if self.is_tensor(x):
            number = self.read(d[0, 0])
            y = y - 5 * number if isinstance(number, Tensor) and number.is_floating_point() else y - 5 if number else y
        return y


WIDE = Box(torch.zeros(2, 2).double(), torch.ones(2, 2).double())
BELOW = torch.tensor([[1.0, -1.0]]).double()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [*READS, *(f"{name}, a float" for name in FLOATS)])
def test_a_forward_that_reads_values_is_refused_whatever_they_are(read, kind):
    """No point at which model and program are compared meets the condition, so their outputs are the same there."""
    model = Reader((READS | {f"{name}, a float": each for name, each in FLOATS.items()})[read], KINDS[kind]).eval()
    with torch.no_grad():
        assert model(BELOW) < 0 < model(-BELOW), "the reading is no reading"
    for refuse in (lambda: bound(model, WIDE), lambda: verify(model, WIDE, torch.ones(2, 1, 1).double(), branches=9)):
        with pytest.raises(UnsupportedOperator, match=r"reads values of its input.*, line \d+"):
            refuse()


class ReadsOnce(Reader):
    """It reads values of its first input alone, or of the one before."""

    def __init__(self, keeps):
        super().__init__(lambda d: False)
        self.keeps, self.kept = keeps, None

    def forward(self, x):
        if isinstance(x, Tensor):
            if self.kept is None or self.keeps is Tensor:
                above = self.kept is not None and float(self.kept) > 1.8
                self.kept = (x[:, 0] - x[:, 1]).max() if self.keeps is Tensor else float((x[:, 0] - x[:, 1]).max())
            else:
                above = self.kept > 1.8
            if above:
                x = x - 5
        return super().forward(x)


@pytest.mark.parametrize("keeps", [Tensor, float])
def test_a_forward_that_reads_values_once_or_of_the_input_before_is_refused(keeps):
    with pytest.raises(UnsupportedOperator, match=r"test_misread_modules\.py, line"):
        bound(ReadsOnce(keeps).eval(), WIDE)


class Rounded(nn.Module):
    """A layer of somebody's own that reads its values, and that computes without torch."""

    def forward(self, x):
        return torch.from_numpy(np.round(x.detach().numpy()))


def round_rule(ctx, x):
    low, high = x.box.lower.round() - 1e-9, x.box.upper.round() + 1e-9
    return Interval((low + high) / 2, (high - low) / 2, None if x.clean is None else x.clean.round())


def behind(layer, read):
    reader = Reader(read)
    return nn.Sequential(nn.Linear(2, 2), layer, reader).double().eval()


LAYERS = {
    "module of somebody's own": Rounded,
    "equilibrium": lambda: Equilibrium(2, nn.Linear(2, 2), kernel_size=None),
    "strongly monotone equilibrium": lambda: Equilibrium(
        2, nn.Linear(2, 2), kernel_size=None, parametrisation="monotone"
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_a_rule_may_read_values_and_what_follows_them_may_not(name, own_operators):
    register(Operator("rounded", round_rule, (), {Rounded: lambda module: {}}))
    torch.manual_seed(0)
    layer = LAYERS[name]()
    lower, upper = bound(behind(layer, lambda d: False), WIDE)
    assert (lower <= upper).all()
    with pytest.raises(UnsupportedOperator, match=r"reads values of its input"):
        bound(behind(layer, lambda d: d > 100), WIDE)


def test_a_module_that_was_compared_is_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double().eval()
    before = [{name: str(value) for name, value in vars(module).items()} for module in model.modules()]
    bound(model, WIDE)
    assert before == [{name: str(value) for name, value in vars(module).items()} for module in model.modules()]


class Hidden(nn.Module):
    """A classifier that computes more where torch.fx does not look."""

    def __init__(self, change):
        super().__init__()
        self.last, self.change = nn.Linear(2, 3), change

    def forward(self, x):
        return self.last(self.change(x) if isinstance(x, Tensor) else x)


def test_the_checker_of_results_refuses_a_forward_that_reads_values():
    images = np.random.default_rng(0).uniform(0, 0.5, (3, 2))
    for change in (lambda x: x + 0 if len(x[x > 0.9]) else x, lambda x: torch.where(x > 0.9, x + 1, x)):
        model = Hidden(change).double().eval()
        with pytest.raises(UnknownLayerError, match="reads values of its input"):
            read_network(model).refuse_other_logits(model, images)
    model = Hidden(lambda x: x).double().eval()
    read_network(model).refuse_other_logits(model, images)
