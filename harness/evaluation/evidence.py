"""What shows that verdicts are right: counterexamples, and certificates of proofs that took a search.

One dictionary of tensors for both while images are judged: a counterexample is called by its image's index, a tensor of
a certificate by "<index>/<name>"; a file for each in the end.
"""

from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from harness.storage import folder
from harness.storage.files import write_atomically

Evidence = dict[str, Tensor]


def write_evidence(directory: Path, evidence: Evidence) -> None:
    """Write the files of a judged trial or certification; that of certificates only where there are any."""
    points = {name: tensor for name, tensor in evidence.items() if "/" not in name}
    write_atomically(directory / folder.COUNTEREXAMPLES, partial(save_file, points))
    if certificates := {name: tensor for name, tensor in evidence.items() if "/" in name}:
        write_atomically(directory / folder.CERTIFICATES, partial(save_file, certificates))
