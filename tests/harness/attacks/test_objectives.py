"""The objectives of attacks: by hand, and each on a network where only it finds a counterexample."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.attacks import pgd
from harness.attacks.objectives import margins, objectives, rank_classes
from harness.settings import EvaluationSettings

LOGITS, LABELS = torch.tensor([[1.0, 4.0, 2.0, 0.0], [5.0, 5.0, 1.0, 2.0]]), torch.tensor([1, 0])


def test_objectives_by_hand():
    assert margins(LOGITS, LABELS).tolist() == [2.0, 0.0]
    assert rank_classes(LOGITS, LABELS).tolist() == [[2, 0, 3], [1, 3, 2]]
    assert len(objectives("margin", 4)) == 1
    margin, cross_entropy, *targets = objectives("all", 4)
    others = rank_classes(LOGITS, LABELS)
    assert margin(LOGITS, LABELS, others).tolist() == [-2.0, 0.0]
    assert [target(LOGITS, LABELS, others).tolist() for target in targets] == [[-2.0, 0.0], [-3.0, -3.0], [-4.0, -4.0]]
    loss = F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS, others), torch.log(torch.expm1(loss)))


def test_cross_entropy_has_a_gradient_where_a_prediction_is_confident():
    logits = torch.tensor([[500.0, 0.0, -1.0]], requires_grad=True)
    labels = torch.tensor([0])
    (gradient,) = torch.autograd.grad(
        objectives("all", 3)[1](logits, labels, rank_classes(logits, labels)).sum(), logits
    )
    assert gradient[0, 0] == -1 and gradient[0, 1] > gradient[0, 2] > 0


class Classes(nn.Module):
    """Logits that are functions of the pixels u, v, w; the first, the label's, is 0."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        u, v, w = x.flatten(1).unbind(1)
        return torch.stack([0 * u, *(logit(u, v, w) for logit in self.logits)], 1)


def decoy(u, v, w):
    """Never above 0 within 1/4 of 1/2."""
    return -2 * (u - 0.5) - 1.1


NETWORKS = {
    # Class 1 leads up u, where class 2 activates and leads up v; four decoys lead cross entropy down.
    "margin": Classes(
        lambda u, v, w: 0.1 * (u - 0.5) - 0.5,
        lambda u, v, w: torch.relu(20 * (u - 0.7) + (v - 0.5)) - 1.1,
        *4 * [decoy],
    ),
    # Three classes lead up a pixel each and down the others, together up all of them, where the fourth activates.
    "cross entropy": Classes(
        lambda u, v, w: u - 0.1 * (v + w) - 2,
        lambda u, v, w: v - 0.1 * (u + w) - 2,
        lambda u, v, w: w - 0.1 * (u + v) - 2,
        lambda u, v, w: 10 * torch.relu(u + v + w - 2.1) - 1,
    ),
    # Only the objective of class 2 alone leads to its counterexample.
    "target": Classes(decoy, lambda u, v, w: 20 * (u - 0.5) - 4.5, *4 * [decoy]),
}


@pytest.mark.parametrize("winner", NETWORKS)
def test_each_objective_finds_a_counterexample_that_the_others_miss(winner, monkeypatch):
    network, start = NETWORKS[winner], torch.tensor([0.48, 0.46, 0.44]).view(1, 1, 1, 3)
    monkeypatch.setattr(pgd, "random_starts", lambda seeds, indices, shape: start)
    x, labels = torch.full((1, 1, 1, 3), 0.5), torch.tensor([0])
    winners = set()
    for number, objective in enumerate(objectives("all", network(x).shape[1])):
        monkeypatch.setattr(pgd, "objectives", lambda attack, classes, only=objective: [only])
        settings = EvaluationSettings(attack="all", attack_steps=20, attack_restarts=1)
        point = pgd.worst_point(network, x, labels, Fraction(1, 4), settings, 0, labels)
        if margins(network(point), labels) < 0:
            winners.add(("margin", "cross entropy", "target")[min(number, 2)])
    assert winners == {winner}
