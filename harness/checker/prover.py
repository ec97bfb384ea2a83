"""Prove single images of a network again, for who has no folder of a trial: `harness.board`."""

from collections.abc import Callable
from fractions import Fraction

from torch import nn

from harness.checker.bounds.boxes import Array, ball
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import read_network
from harness.checker.images import check_contraction, check_finite
from harness.checker.proofs.certificates import Tensors
from harness.checker.proofs.example import prove


def prover_of(
    model: nn.Module, eps: Fraction, images: Array
) -> Callable[[Array, int, Tensors | None], tuple[bool, str]] | str:
    """Return a function from an image [C, H, W], grey levels 0 to 255, its label and certificate to its proof.

    That is whether all margins are proved to be positive over the ball, and why not. A text is returned instead of the
    function, and says why, if the network cannot be checked: layers without a rule, an equilibrium without a proof.

    model: float64, in evaluation mode. images: [B, C, H, W] in [0, 1], at which its logits are compared.
    """
    try:
        network = read_network(model)
        network.refuse_other_logits(model, images)
    except UnknownLayerError as error:
        return f"the checker has no rule for {error.what}"
    if problems := check_finite(model) + check_contraction(network, images.shape[1:]):
        return problems[0]

    def prove_image(pixels: Array, label: int, certificate: Tensors | None) -> tuple[bool, str]:
        proof = prove(network, ball(pixels[None], float(eps)), label, certificate)
        refused = f"its certificate is refused: {proof.refused}"
        return bool(proof.proved_by), refused if proof.refused else f"a margin has the lower bound {proof.minimum:.3g}"

    return prove_image
