"""The table of bounds: what a new record needs, and names that are not in it."""

import pytest
import torch
from cases import mlp
from oracles import Lambda, random_box

from cerdeq import bound
from cerdeq.bounds import BOUNDS, Bound, Interval, Operator, lower_bounds, register, trace


def test_a_new_record_runs_its_own_function(monkeypatch):
    questions = []

    def lower(question):
        questions.append(question)
        return BOUNDS["crown"].lower(question)

    assert all(record.name == name for name, record in BOUNDS.items())
    monkeypatch.setitem(BOUNDS, "mine", Bound("mine", linear=True, lower=lower))
    model, box, spec = mlp().double().eval(), random_box(3, 2), torch.randn(3, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(bound(model, box, "mine", spec), bound(model, box, "crown", spec), rtol=0, atol=0)
    lower_bounds(trace(model, linear=True), Interval(box.center, box.radius), spec, "mine", target=0.0)
    shapes = [question.spec.shape for question in questions]
    assert shapes == [(3, 8, 3), (3, 4, 3)], "spec and its negative, spec alone"
    assert [question.target for question in questions] == [None, 0.0]


def test_a_record_may_give_both_ends_itself(monkeypatch):
    record = Bound("mine", linear=False, lower=BOUNDS["ibp"].lower, ends=lambda program, x, spec: (-x.radius, x.radius))
    monkeypatch.setitem(BOUNDS, "mine", record)
    box = random_box(3, 2)
    assert all(map(torch.equal, bound(mlp().double().eval(), box, "mine"), (-box.radius, box.radius)))


def test_a_record_without_backward_rules_bounds_operators_that_have_none(monkeypatch, own_operators):
    register(Operator("sign", lambda ctx, x: Interval(0 * x.center, torch.ones_like(x.radius)), (torch.sign,)))
    monkeypatch.setitem(BOUNDS, "mine", Bound("mine", linear=False, lower=BOUNDS["ibp"].lower))
    lower, upper = bound(Lambda(lambda module, x: torch.sign(x)).eval(), random_box(3, 2), "mine")
    assert (lower <= -1).all() and (upper >= 1).all()


def test_an_unknown_name_is_refused():
    model, box = mlp().double().eval(), random_box(1, 2)
    for name in ("IBP", None):
        with pytest.raises(ValueError, match=r"unknown method .*; methods: ibp, crown-ibp, crown, alpha-crown"):
            bound(model, box, method=name)
    with pytest.raises(ValueError, match=r"unknown method"):
        lower_bounds(trace(model), Interval(box.center, box.radius), torch.ones(1, 1, 3), "IBP")
