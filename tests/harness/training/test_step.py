"""The training step: what it minimises, and that every way of running it gives the same."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.equilibrium import FixedPoint
from harness.data import load
from harness.training.augment import draw
from harness.training.initialise import initialise
from harness.training.methods import METHODS as ALL
from harness.training.methods import Batch
from harness.training.methods.certified import IBP, CrownIBP
from harness.training.step import Stepper, make_optimiser


def _stepper(config, device: str = "cpu", dtype=torch.float32) -> Stepper:
    data = load(config.dataset)
    torch.manual_seed(0)
    model = build(config.model, config.dataset, config.width, **config.options)
    initialise(model)
    model.to(device, dtype, memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, torch.device(device))
    return Stepper(config, model, optimiser, data.train.images.to(device), data.train.labels.to(device))


def _take_steps(stepper: Stepper, count: int, batch: int) -> torch.Tensor:
    draws = draw(len(stepper.images), 2, True, 0, 1, stepper.images.device)
    return torch.stack([stepper(draws.batch(batch * i, batch), 0.01 * i + 1e-6, 5e-4) for i in range(count)])


def test_the_ibp_loss_is_the_cross_entropy_of_the_worst_logits():
    """Against the public bounds, in float64, with batch norm's running statistics set to the batch's."""
    model = build("cnn5", "digits", width=0.2).double()
    x, labels, eps = torch.rand(20, 1, 8, 8).double(), torch.randint(0, 10, (20,)), 0.02
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.momentum = 1.0
    model.train()
    batch = Batch(x, labels, 10, torch.tensor(eps).double(), torch.tensor(0.5).double())
    losses = IBP().loss(trace(model), batch)
    for module in model.modules():  # torch keeps the unbiased variance; the step normalises by the biased one
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var *= 1 - 1 / (20 * (16 if module is model.norm3 else 64))
        elif isinstance(module, torch.nn.BatchNorm1d):
            module.running_var *= 1 - 1 / 20
    model.eval()
    lower, _ = bound(model, LinfBall(x, eps), spec=margin_spec(labels, 10))
    worst = torch.zeros(20, 10).double()
    for row, label in enumerate(labels):
        others = [k for k in range(10) if k != label]
        worst[row, others] = -lower[row]
    assert losses.robust.item() == pytest.approx(F.cross_entropy(worst, labels).item(), rel=1e-6)
    torch.testing.assert_close(losses.lower, lower, rtol=1e-6, atol=1e-9)


def _batch(progress: float, images: int = 12) -> Batch:
    x, labels = torch.rand(images, 1, 8, 8).double(), torch.randint(0, 10, (images,))
    return Batch(x, labels, 10, torch.tensor(0.05, dtype=torch.float64), torch.tensor(progress))


def _network(name: str) -> torch.nn.Module:
    return build(name, "digits", width=0.2).double().eval()


@pytest.mark.parametrize("name", ["cnn5", "resnet9", "cerdeq"])
@pytest.mark.parametrize("fusion", [True, False])
def test_crown_ibp_without_beta_is_ibp(name, fusion):
    model, batch = _network(name), _batch(progress=1.0)
    program = trace(model, linear=True)
    expected, found = IBP().loss(program, batch), CrownIBP(fusion).loss(program, batch)
    assert found.robust.item() == pytest.approx(expected.robust.item(), rel=1e-12)
    parameters = list(model.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(x.robust, parameters) for x in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["cnn5", "resnet9"])
def test_the_crown_ibp_loss_is_the_cross_entropy_of_the_public_bounds(name):
    """beta 1, nothing fused: where CROWN-IBP beats IBP everywhere, which `bound` never falls behind."""
    model, batch = _network(name), _batch(progress=0.0)
    found = CrownIBP(loss_fusion=False).loss(trace(model, linear=True), batch)
    ball, spec = LinfBall(batch.x, 0.05), margin_spec(batch.labels, 10)
    lower, looser = (bound(model, ball, method, spec)[0] for method in ("crown-ibp", "ibp"))
    assert (lower > looser).all()
    worst = torch.cat([torch.zeros(12, 1).double(), -lower], dim=1)
    expected = F.cross_entropy(worst, torch.zeros(12, dtype=torch.long))
    assert found.robust.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["cnn5", "resnet9", "cerdeq"])
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_fused_loss_is_no_less_than_that_of_any_point(name, progress):
    """beta mixes two upper bounds of the loss at each point of the ball."""
    model, batch = _network(name), _batch(progress)
    program = trace(model, linear=True)
    for eps in (1e-6, 0.01, 0.1):
        at = dataclasses.replace(batch, eps=torch.tensor(eps).double())
        loss = CrownIBP().loss(program, at).robust.item()
        ball = LinfBall(batch.x, eps)
        for _ in range(20):
            point = ball.center + ball.radius * torch.sign(torch.randn_like(batch.x))
            assert F.cross_entropy(model(point), batch.labels).item() <= loss * (1 + 1e-9) + 1e-9


def test_fusing_tends_to_the_margins_bounds_at_small_eps():
    """The chords touch exp at both ends, so that at eps 0 both are the clean loss."""
    model, batch = _network("cnn5"), _batch(progress=0.0)
    at = dataclasses.replace(batch, eps=torch.tensor(0.0).double())
    clean = F.cross_entropy(model(batch.x), batch.labels).item()
    for fusion in (True, False):
        found = CrownIBP(fusion).loss(trace(model, linear=True), at).robust.item()
        assert found == pytest.approx(clean, rel=1e-9)


@pytest.mark.parametrize("options", [{"loss_fusion": True}, {"loss_fusion": False}])
@pytest.mark.parametrize("name", ["cnn5", "resnet9", "cerdeq"])
def test_every_parameter_has_a_finite_gradient(name, options):
    model = _network(name).train()
    for eps in (1e-6, 0.1):
        at = dataclasses.replace(_batch(progress=0.3), eps=torch.tensor(eps).double())
        loss = CrownIBP(**options).loss(trace(model, linear=True), at).robust
        for parameter, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            assert gradient.isfinite().all() and gradient.shape == parameter.shape


def test_the_crown_ibp_gradient_against_finite_differences():
    model, batch = _network("cnn5"), _batch(progress=0.3, images=2)
    program = trace(model, linear=True)
    weight = model.classifier.weight
    for fusion in (True, False):

        def loss(fusion=fusion) -> torch.Tensor:
            return CrownIBP(fusion).loss(program, batch).robust

        (gradient,) = torch.autograd.grad(loss(), weight)
        step = 1e-6 * torch.randn_like(weight)
        with torch.no_grad():
            weight += step
            above = loss()
            weight -= 2 * step
            below = loss()
            weight += step
        assert float(above - below) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-4)


def test_crown_ibp_goes_on_as_ibp_when_beta_is_spent(tiny_trial):
    spent = _stepper(tiny_trial(method="crown-ibp"))
    kept = _stepper(tiny_trial(method="crown-ibp", method_options={"final_beta": 0.5}))
    assert set(spent.losses) == {"crown-ibp", "ibp"} and set(kept.losses) == {"crown-ibp"}
    asked = []
    for name in spent.losses:
        spent.losses[name] = lambda *a, loss=spent.losses[name], name=name: (asked.append(name), loss(*a))[1]
    choices = draw(64, 0, False, 0, 1, torch.device("cpu")).batch(0, 64)
    for eps in (spent.config.train_eps / 2, spent.config.train_eps):
        spent(choices, eps, 5e-4)
    assert asked == ["crown-ibp", "ibp"]


def test_the_regularisers_fade_with_eps(tiny_trial):
    config = tiny_trial(eps="1/20")
    weighted, free = _stepper(config), _stepper(tiny_trial(eps="1/20", train={"regularisation": 0.0}))
    choices = draw(64, 0, False, 0, 1, torch.device("cpu")).batch(0, 64)
    for eps, same in ((0.02, False), (0.05, True)):
        with torch.no_grad():
            first, second = (
                stepper.losses["ibp"](stepper.images[choices[0]] / 255, stepper.labels[choices[0]], torch.tensor(eps))[
                    0
                ]
                for stepper in (weighted, free)
            )
        assert (abs(float(first - second)) < 1e-5) == same


def test_gradients_are_clipped(tiny_trial):
    stepper = _stepper(tiny_trial(train={"clip_norm": 0.1}))
    _take_steps(stepper, 1, 64)
    norm = torch.stack([p.grad.norm() for p in stepper.model.parameters()]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)


def test_gradients_are_left_as_they_are_where_nothing_clips_them(tiny_trial):
    free, loose = (_stepper(tiny_trial(train={"clip_norm": norm})) for norm in (None, 1e9))
    torch.testing.assert_close(_take_steps(free, 2, 64), _take_steps(loose, 2, 64), rtol=0, atol=0)
    norm = torch.stack([p.grad.norm() for p in free.model.parameters()]).norm()
    assert float(norm) > 0.1


METHODS = [("ibp", {}), ("crown-ibp", {}), ("crown-ibp", {"loss_fusion": False})]
ATTACKING = [("sabr", {}), ("mtl-ibp", {}), ("pgd", {"attack_steps": 2})]
EVERY = [(model, *method) for model in ("cnn5", "resnet9", "cerdeq") for method in METHODS]
EVERY += [("cerdeq", *method) for method in [*ATTACKING, ("plain", {})]]


@pytest.mark.parametrize(("model", "method", "options"), EVERY)
def test_the_compiled_loss_takes_the_same_steps(tiny_trial, model, method, options):
    """The whole loss is one graph: fullgraph refuses anything that is not."""
    torch.compiler.reset()
    config = tiny_trial(model, method=method, method_options=options)
    eager, compiled = _stepper(config), _stepper(config)
    compiled.losses = {
        name: torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
        for name, loss in compiled.losses.items()
    }
    taken = []
    for stepper in (eager, compiled):
        torch.manual_seed(0)
        taken.append(_take_steps(stepper, 4, 64))
    torch.testing.assert_close(*taken, rtol=1e-3, atol=1e-3, equal_nan=True)


BF16 = [(model, *method) for model in ("cnn7", "cerdeq") for method in METHODS]


@pytest.mark.parametrize(("model", "method", "options"), BF16)
def test_steps_in_bf16_are_close_to_those_in_float32(tiny_trial, model, method, options):
    found, exact = (
        _stepper(tiny_trial(model, method=method, method_options=options, train={"precision": precision}))
        for precision in ("bf16", "float32")
    )
    choices = draw(64, 0, False, 0, 1, torch.device("cpu")).batch(0, 64)
    first, reference = (stepper(choices, 0.01, 0.0)[0] for stepper in (found, exact))
    assert float(first) == pytest.approx(float(reference), rel=0.01) and first != reference
    gradients, expected = (
        torch.cat([parameter.grad.flatten() for parameter in stepper.model.parameters()]) for stepper in (found, exact)
    )
    assert float(F.cosine_similarity(gradients, expected, dim=0)) > 0.99
    after, reference = (_take_steps(stepper, 20, 64)[:, 0] for stepper in (found, exact))
    assert after.isfinite().all()
    torch.testing.assert_close(after, reference, rtol=0.3, atol=0)
    for parameter in found.model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()
    assert {moment.dtype for state in found.optimiser.state.values() for moment in state.values()} == {torch.float32}


@pytest.mark.parametrize("eps", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize(("model", "method", "options"), [*BF16, ("resnet9", "crown-ibp", {})])
def test_every_box_in_bf16_has_a_radius(model, method, options, dead, eps):
    network = build(model, "digits", width=0.2).train()
    initialise(network)
    if dead:
        torch.nn.init.constant_(network.norm1.bias, -1e4)
    batch = dataclasses.replace(_batch(progress=0.3), x=torch.rand(12, 1, 8, 8), eps=torch.tensor(eps))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = ALL[method](**options).loss(trace(network, linear=True), batch)
    assert len(losses.preactivations) == sum(isinstance(m, torch.nn.ReLU | FixedPoint) for m in network.modules())
    for box in losses.preactivations.values():
        assert box.center.dtype == box.radius.dtype == torch.float32
        assert box.center.isfinite().all() and box.radius.isfinite().all() and (box.radius >= 0).all()
    assert (losses.lower <= losses.clean + 1e-2 * losses.clean.abs().amax()).all()
    assert losses.lower.dtype == losses.clean.dtype == losses.robust.dtype == torch.float32
    assert losses.robust.isfinite()


def test_margins_in_bf16_are_those_of_the_last_layer_in_float32():
    """Only their arguments are rounded."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    batch = dataclasses.replace(_batch(progress=0.3), x=torch.rand(12, 1, 8, 8), eps=torch.tensor(0.05))
    exact = IBP().loss(trace(network), batch)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found = IBP().loss(trace(network), batch)
    torch.testing.assert_close(found.lower, exact.lower, rtol=0, atol=0)
    assert found.robust == exact.robust


@pytest.mark.parametrize("method", ALL)
def test_values_in_bf16_are_float32_without_batch_norm_too(method):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    )  # fmt: skip
    batch = dataclasses.replace(_batch(progress=0.3), x=torch.rand(12, 1, 8, 8), eps=torch.tensor(0.05))
    program = trace(network, linear=True)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        batch = dataclasses.replace(batch, adversary=ALL[method]().attack(program, batch))
        losses = ALL[method]().loss(program, batch)
    assert {box.radius.dtype for box in losses.preactivations.values()} <= {torch.float32}
    assert losses.clean.dtype == losses.robust.dtype == torch.float32
    losses.robust.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_an_equilibrium_s_w_is_not_rounded_in_bf16():
    """Else the bound on rho(|W|) is not that of the W which is certified."""
    network, x = build("cerdeq", "digits", width=0.2).train(), torch.rand(4, 1, 8, 8)
    kept = []
    for in_bf16 in (False, True):
        ctx = Context(sound=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16, cache_enabled=False):
            values_of(trace(copy.deepcopy(network)), Interval(x, x / 100, x), ctx)
        kept.append(ctx.kept["equilibrium.recurrence"])
    torch.testing.assert_close(*kept, rtol=0, atol=0)


@pytest.mark.parametrize(("model", "method"), [("cnn5", "ibp"), ("cerdeq", "crown-ibp")])
def test_the_compiled_loss_takes_the_same_step_in_bf16(tiny_trial, model, method):
    torch.compiler.reset()
    config = tiny_trial(model, method=method, train={"precision": "bf16"})
    eager, compiled = _stepper(config), _stepper(config)
    compiled.losses = {
        name: torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
        for name, loss in compiled.losses.items()
    }
    torch.testing.assert_close(_take_steps(eager, 2, 64), _take_steps(compiled, 2, 64), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["cnn7", "resnet9", "cerdeq"])
def test_the_captured_step_in_bf16_is_close_to_the_eager_one(tiny_trial, model):
    """On CUDA the compiler rounds less often than eager code does."""
    config = tiny_trial(model, method="crown-ibp", train={"precision": "bf16"})
    captured, eager = _stepper(config, "cuda"), _stepper(config, "cuda")
    eager.graphs = None
    mine, theirs = (_take_steps(stepper, 3, 64)[:, 0] for stepper in (captured, eager))
    torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "method", "options"), EVERY)
def test_the_captured_step_is_the_eager_one(tiny_trial, model, method, options):
    """On CUDA: compiled and captured against eager, state included; warming up must leave no trace."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    config = tiny_trial(model, method=method, method_options=options)
    captured, eager = _stepper(config, "cuda"), _stepper(config, "cuda")
    eager.graphs = None
    taken = []
    for stepper in (captured, eager):
        torch.manual_seed(0)
        taken.append(_take_steps(stepper, 6, 64))
    torch.testing.assert_close(*taken, rtol=2e-2, atol=2e-2, equal_nan=True)
    for (name, mine), theirs in zip(
        captured.model.state_dict().items(), eager.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-3, msg=name)


def test_an_equilibrium_s_schedules_follow_eps(tiny_trial):
    options = {"margin": 0.2, "margin_start": 0.8, "iterations": 9, "early_iterations": 1}
    stepper = _stepper(tiny_trial("cerdeq", eps="1/10", options=options))
    point, choices = stepper.model.equilibrium.recurrence, draw(300, 2, True, 0, 1, torch.device("cpu")).batch(0, 16)
    seen = []
    for eps in (1e-6, 0.05, 0.1):
        stepper(choices, eps, 5e-4)
        seen.append((point.iterations, round(point.parametrizations.weight[0].margin.item(), 3)))
    assert seen == [(1, 0.8), (5, 0.5), (9, 0.2)]


def test_regularisers_can_leave_equilibria_out(tiny_trial):
    losses = {}
    for counted in (True, False):
        for weight in (0.0, 0.5):
            train = {"regularise_equilibria": counted, "regularisation": weight}
            stepper = _stepper(tiny_trial("cerdeq", train=train))
            x = stepper.images[:32].float() / 255
            losses[counted, weight] = stepper.losses["ibp"](x, stepper.labels[:32], torch.tensor(1e-3))[0].item()
    assert losses[True, 0.0] == losses[False, 0.0]
    assert losses[True, 0.5] != losses[False, 0.5] and min(losses.values()) == losses[True, 0.0]


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
@pytest.mark.parametrize(
    "options",
    [
        {"parametrisation": "nonnegative"},
        {"parametrisation": "monotone", "warm_start": True},
        {"parametrisation": "orthogonal", "groups": 2, "gradient": "unrolled"},
    ],
)
def test_the_compiled_loss_of_every_kind_of_equilibrium_is_the_eager_one(options, method, tiny_trial):
    """fullgraph: no branch of the recurrence breaks the graph."""
    torch._dynamo.reset()
    config = tiny_trial("cerdeq", method=method, width=0.05, options=options)
    eager = _stepper(config)
    x, labels, eps = eager.images[:8].float() / 255, eager.labels[:8], torch.tensor(0.01)
    compiled = torch.compile(_stepper(config).losses[method], fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x, labels, eps)[0], eager.losses[method](x, labels, eps)[0])
