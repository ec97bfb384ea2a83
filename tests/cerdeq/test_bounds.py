"""The table of bounds: its order, and what a new record needs."""

import itertools

import pytest
import torch
from cases import mlp
from oracles import Lambda, random_box

from cerdeq import bound
from cerdeq.bounds import BOUNDS, Bound, Interval, Operator, lower_bounds, register, trace


def test_records_are_found_by_their_names():
    assert all(record.name == name for name, record in BOUNDS.items())


def test_no_bound_is_looser_than_one_before_it():
    model, box = mlp().double().eval(), random_box(3, 2)
    for (below, above), (lower, upper) in itertools.pairwise(bound(model, box, name) for name in BOUNDS):
        assert (below <= lower).all() and (upper <= above).all()


def test_a_fifth_record_runs_its_own_function(monkeypatch):
    asked = []

    def lower(question):
        asked.append(question)
        return BOUNDS["crown"].lower(question)

    monkeypatch.setitem(BOUNDS, "mine", Bound("mine", linear=True, lower=lower))
    model, box, spec = mlp().double().eval(), random_box(3, 2), torch.randn(3, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(bound(model, box, "mine", spec), bound(model, box, "crown", spec), rtol=0, atol=0)
    program, x = trace(model, linear=True), Interval(box.center, box.radius)
    lower_bounds(program, x, spec, "mine", target=0.0)
    assert [question.spec.shape for question in asked] == [(3, 8, 3), (3, 4, 3)], "spec and its negative, spec alone"
    assert [question.target for question in asked] == [None, 0.0]


def test_a_record_may_give_both_ends_itself(monkeypatch):
    record = Bound("mine", linear=False, lower=BOUNDS["ibp"].lower, ends=lambda program, x, spec: (-x.radius, x.radius))
    monkeypatch.setitem(BOUNDS, "mine", record)
    box = random_box(3, 2)
    assert all(map(torch.equal, bound(mlp().double().eval(), box, "mine"), (-box.radius, box.radius)))


def test_a_record_without_backward_rules_bounds_operators_that_have_none(monkeypatch, own_operators):
    register(Operator("sign", lambda ctx, x: Interval(0 * x.center, torch.ones_like(x.radius)), (torch.sign,)))
    monkeypatch.setitem(BOUNDS, "mine", Bound("mine", linear=False, lower=BOUNDS["ibp"].lower))
    model = Lambda(lambda module, x: torch.sign(x)).eval()
    lower, upper = bound(model, random_box(3, 2), "mine")
    assert (lower <= -1).all() and (upper >= 1).all()


@pytest.mark.parametrize("name", ["IBP", "crown-lbp", "", None])
def test_an_unknown_name_is_refused(name):
    model, box = mlp().double().eval(), random_box(1, 2)
    message = r"unknown method .*; methods: ibp, crown-ibp, crown, alpha-crown"
    with pytest.raises(ValueError, match=message):
        bound(model, box, method=name)
    with pytest.raises(ValueError, match=message):
        lower_bounds(trace(model), Interval(box.center, box.radius), torch.ones(1, 1, 3), name)
