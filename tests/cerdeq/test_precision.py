"""While bounds are computed, every switch is off that makes torch round differently than they count."""

import copy
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cerdeq import Box, LinfBall, bound, margin_spec, verify
from cerdeq.bounds import BOUNDS
from cerdeq.equilibrium import certificate
from cerdeq.exact_products import InexactProductsError, check_products
from cerdeq.precision import counted_rounding, uncounted_rounding
from cerdeq.tracing.trace import trace

OPERATORS = {
    "cuda.matmul": torch.backends.cuda.matmul,
    "cudnn.conv": torch.backends.cudnn.conv,
    "mkldnn.conv": torch.backends.mkldnn.conv,
    "mkldnn.matmul": torch.backends.mkldnn.matmul,
}


@pytest.fixture(autouse=True)
def _restored():
    before = {name: part.fp32_precision for name, part in OPERATORS.items()}
    yield
    for name, part in OPERATORS.items():
        part.fp32_precision = before[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_switch_is_off_within_and_as_it_was_after(name):
    OPERATORS[name].fp32_precision = "tf32"
    enabled = torch.backends.cudnn.enabled
    with counted_rounding("cpu"):
        assert {part.fp32_precision for part in OPERATORS.values()} == {"ieee"}
        assert not torch.backends.cudnn.enabled
    assert OPERATORS[name].fp32_precision == "tf32" and torch.backends.cudnn.enabled == enabled


@pytest.mark.parametrize(("images", "method"), [(1, "ibp"), (4, "crown-ibp"), (1, "crown")])
@pytest.mark.usefixtures("slow_float64")
def test_float32_bounds_hold_where_convolutions_would_run_in_bfloat16(method, images):
    """Also where torch cannot read both switches together, since they differ."""
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if images == 4 else "ieee"
    model = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    x = torch.rand(images, 16, 8, 8)
    exact = copy.deepcopy(model).double()(x.double())
    lower, upper = bound(model, LinfBall(x, 0.0), method)
    assert (lower <= exact).all() and (exact <= upper).all()


def test_a_box_is_verified_with_rounding_counted_whoever_asks(monkeypatch):
    switches, step = [], certificate.interval_step

    def seen(*arguments):
        switches.append((torch.backends.cudnn.enabled, torch.backends.cudnn.conv.fp32_precision))
        return step(*arguments)

    monkeypatch.setattr(certificate, "interval_step", seen)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    certificate.verified_box(0.2 * torch.rand(3, 3), Box(torch.rand(2, 3), torch.rand(2, 3)))
    assert set(switches) == {(False, "ieee")}


flushing = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormal numbers")


def run_in_threads(*functions):
    """Call each function in a thread of its own and wait for all."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


@pytest.fixture
def _unchecked():
    """Run the check of products again in this test, and in the next one."""
    check_products.cache_clear()
    yield
    check_products.cache_clear()


def test_switches_stay_off_until_the_last_thread_has_left():
    """The thread that enters first leaves first."""
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    first_is_in, second_is_in, first_has_left = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with counted_rounding("cpu"):
            first_is_in.set()
            second_is_in.wait(10)
        first_has_left.set()

    def second():
        first_is_in.wait(10)
        with counted_rounding("cpu"):
            second_is_in.set()
            first_has_left.wait(10)
            seen.append((torch.backends.mkldnn.conv.fp32_precision, torch.backends.cudnn.enabled))

    run_in_threads(first, second)
    assert seen == [("ieee", False)]
    assert (torch.backends.mkldnn.conv.fp32_precision, torch.backends.cudnn.enabled) == ("bf16", True)


@pytest.mark.parametrize("has_nested_proof", [False, True])
def test_a_switch_that_is_changed_in_a_proof_is_an_error(has_nested_proof):
    """Even if a nested one would switch it off again."""
    with pytest.raises(InexactProductsError, match="was set to 'bf16' while"), counted_rounding("cpu"):
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        if has_nested_proof:
            with counted_rounding("cpu"):
                torch.backends.mkldnn.conv.fp32_precision = "ieee"
    assert torch.backends.cudnn.enabled


def flushes():
    return sys.float_info.min * torch.tensor(0.5, dtype=torch.float64) == 0


@flushing
@pytest.mark.parametrize("method", BOUNDS)
def test_bounds_hold_after_set_flush_denormal(method, size=0.1):
    """The exact output is negative, since the subnormal pixel has a large weight."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).double().eval()
    model[1].weight.data = torch.tensor([[-1e5, 1.0]], dtype=torch.float64)
    x = torch.tensor([[2e-308 * size, 1e-305 * size]], dtype=torch.float64)
    exact = -1e5 * 2e-308 * size + 1e-305 * size
    torch.set_flush_denormal(True)
    try:
        (lower, upper), still_flushes = bound(model, Box(x, torch.zeros_like(x)), method), flushes()
    finally:
        torch.set_flush_denormal(False)
    assert lower.item() <= exact <= upper.item() and exact < 0
    assert still_flushes and not flushes()


@flushing
@pytest.mark.parametrize("was_on", [True, False])
def test_flush_to_zero_within_a_proof_is_an_error(was_on):
    torch.set_flush_denormal(was_on)
    try:
        with pytest.raises(InexactProductsError, match="flushed to zero"), counted_rounding("cpu"):
            torch.set_flush_denormal(True)
        assert flushes()
    finally:
        torch.set_flush_denormal(False)


def test_cudnn_and_autocast_are_off_in_a_proof():
    with pytest.raises(InexactProductsError, match=r"cudnn\.enabled"), counted_rounding("cpu"):
        torch.backends.cudnn.enabled = True
    with torch.autocast("cpu", torch.bfloat16), counted_rounding("cpu"):
        assert not torch.is_autocast_enabled("cpu")


@flushing
def test_worker_threads_that_flush_subnormal_numbers_are_noticed():
    """Each thread has workers of its own, and torch may start more of them later."""
    code = """
import threading, torch
from cerdeq.exact_products import InexactProductsError
from cerdeq.precision import counted_rounding
def bounds():
    with counted_rounding("cpu"): pass
def start_workers():
    torch.set_flush_denormal(True); torch.set_num_threads(4); torch.ones(2**22) * 2; torch.set_flush_denormal(False)
def finish():
    start_workers()
    try: bounds()
    except InexactProductsError as error: print(error)
torch.set_num_threads(4)
bounds()
thread = threading.Thread(target=finish)
thread.start(); thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "worker threads flush subnormal numbers" in done.stdout


@pytest.mark.parametrize("search_ends_first", [True, False])
def test_a_search_does_not_switch_cudnn_on_during_a_proof_in_another_thread(search_ends_first):
    searching, proving, searched, proved = (threading.Event() for _ in range(4))
    states = []

    def search():
        with counted_rounding("cpu"):
            with uncounted_rounding():
                searching.set()
                proving.wait(10)
                if not search_ends_first:
                    proved.wait(10)
            with uncounted_rounding():
                states.append(torch.backends.cudnn.enabled)
            searched.set()
            proved.wait(10)

    def prove():
        searching.wait(10)
        with counted_rounding("cpu"):
            states.append(torch.backends.cudnn.enabled)
            proving.set()
            if search_ends_first:
                searched.wait(10)
            with counted_rounding("cpu"):
                states.append(torch.backends.cudnn.enabled)
            states.append(torch.backends.cudnn.enabled)
        proved.set()

    run_in_threads(search, prove)
    in_proofs = [False] * 3
    assert states == ([False, *in_proofs] if search_ends_first else [*in_proofs, True])
    assert torch.backends.cudnn.enabled


def round_to_bits(factor, bits):
    """Round a float32 tensor, or for more than 23 bits a float64 one, to so many bits; return others unchanged."""
    if factor.dtype != (torch.float64 if bits > 23 else torch.float32):
        return factor
    mantissa, exponent = torch.frexp(factor)
    return torch.ldexp(torch.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("side", ["images", "weights"])
@pytest.mark.parametrize("bits", [8, 16, 23, 24])
@pytest.mark.parametrize(
    ("owner", "function"),
    [(F, "conv2d"), (F, "conv_transpose2d"), (F, "linear"), (torch, "bmm"), (torch.Tensor, "__matmul__")],
)
def test_every_digit_of_each_factor_counts(owner, function, bits, side, monkeypatch):
    """16: two bfloat16 numbers in place of a float32 one; 23: a bit less than float32; 24: float32 for float64."""
    exact = getattr(owner, function)

    def rounded(x, w, *arguments, **options):
        x, w = (round_to_bits(x, bits), w) if side == "images" else (x, round_to_bits(w, bits))
        return exact(x, w, *arguments, **options)

    monkeypatch.setattr(owner, function, rounded)
    with pytest.raises(InexactProductsError, match="in reduced precision"):
        check_products("cpu")


@pytest.mark.usefixtures("_unchecked")
def test_products_in_fixed_point_numbers_are_noticed(monkeypatch):
    """Emulated float64 products, in fixed point relative to the largest number of a row."""
    multiply = torch.Tensor.__matmul__

    def emulated(a, b):
        unit = a.abs().amax(1, keepdim=True) * 2.0**-50
        return multiply(torch.round(a / unit) * unit, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", emulated)
    with pytest.raises(InexactProductsError, match="in reduced precision"):
        check_products("cpu")


def test_an_environment_that_reduces_precision_is_refused(monkeypatch, _unchecked):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(InexactProductsError, match="ONEDNN_DEFAULT_FPMATH_MODE=BF16"), counted_rounding("cpu"):
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_modules_that_another_thread_calls_during_a_trace_are_left_as_they_are(shared):
    """torch.fx replaces the calls and attributes of all modules while it traces."""
    linear, other, outputs = nn.Linear(2, 2), nn.Linear(2, 2), []

    class Meanwhile(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            run_in_threads(lambda: outputs.append((linear if shared else other)(torch.ones(1, 2))))
            return self.linear(x)

    assert len(trace(Meanwhile().eval()).steps) == 1
    assert [type(output) for output in outputs] == [torch.Tensor]


def lower_by_bound(model, region, spec):
    return bound(model, region, "crown", spec)[0]


def lower_by_verify(model, region, spec):
    return verify(model, region, spec).lower


@pytest.mark.parametrize("lower", [lower_by_bound, lower_by_verify])
def test_torch_compile_leaves_bounds_as_they_are(lower):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    region, spec = LinfBall(torch.rand(2, 3), 0.1), margin_spec(torch.tensor([0, 1]), 2)
    compiled = []

    def backend(graph, example_inputs):
        compiled.extend(node.target for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    negated = torch.compile(lambda spec: lower(model, region, spec).neg(), backend=backend)(spec)
    assert torch.equal(negated, -lower(model, region, spec))
    assert compiled == ["neg"]
