"""Fetch the published weights that the sweeps published-*.yaml evaluate.

    python results/published/published-mnist/fetch_checkpoints.py         # all
    python results/published/published-mnist/fetch_checkpoints.py craft   # the files of one folder

The files go to ../checkpoints, where the sweep files look for them. They are not part of this project; their licences
are in their repositories. The script needs git and network access. To use a mirror, set git's
`url.<mirror>.insteadOf`. Files that exist with the right SHA-256 are skipped.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).resolve().parents[4] / "checkpoints"
ORIGINS = {  # folder: repository, commit
    "paradox": ("https://github.com/eth-sri/paradox", "82c74cd5c91cc2481520bfc6d1592d2b6197bbd5"),
    "convex_adversarial": (
        "https://github.com/locuslab/convex_adversarial", "2cd8149249b9e90383af10fc7e9b9fe90166813e",
    ),
    "alpha-beta-crown": (
        "https://github.com/Verified-Intelligence/alpha-beta-CROWN", "8250d5fbd530c76e5e3243db28b3cad5fbaef740",
    ),
    "craft": ("https://github.com/eth-sri/CRAFT", "96513aadf9a1c1412a1c386a9cef2dcc913100ca"),
}  # fmt: skip
FILES = {  # (folder under checkpoints/, folder in the repository): lines of name, bytes, SHA-256
    ("paradox", "pretrained"): """
        mnist_CONV_box.pt 1262967 f5ef2e4501299d30573856a1c127fbe11930ab1919788c3affa48c581204c7f8
        mnist_CONV_crown.pt 1262967 1ff05f5db6d68a7b299e9348355a5ce9ee2b42556360178535cf6b9571d9f1f5
        mnist_CONV_crownibp1to0.pt 1262967 0405fbb5ba45098de208d4548447d9de653c482a35a4ecf610e6b93771cb7d51
        mnist_CONV_crownibp1to1.pt 1262967 e5a2976d9613e7e5ad0f0794e4d0677b7983c62b7a1b66f69f05ab0b5a1bc3ec
        mnist_CONV_hbox.pt 1262967 0d3fad7b0dc57069c11bbbb84a3951cc9dee2fa3fa80a6292110f87077c8f410
        mnist_CONV_zono.pt 1262967 876bc08baf2da84c93d44dbdfeb2eeac98fa6b7cc210d033592ee90453d5cea9
        mnist_FC_box.pt 1705947 e63eb6de5b0e7aed5c303ef3b07724c4d8838e3dd9a88f1854b10588e62f5d9f
        mnist_FC_crown.pt 1705947 e92b428dac7dee506414b8688df1bb34b4cdd7127561291b1131124b1f8782a4
        mnist_FC_crownibp1to0.pt 1705947 356d933105480aa925747ac92066000d0d417495e49085f71153e56c6a41e9e7
        mnist_FC_crownibp1to1.pt 1705947 e97281b0929bba9b3c386229486784177a4bdd113607ccaad001fd67e6ccbbf4
        mnist_FC_hbox.pt 1705947 e28243809c52ca6fe74af6e70475449247262cb9fc01a4115238b57763d8840b
        mnist_FC_zono.pt 1705947 a7a64318d131cd8f18f415360901d6994a83f4f0ea48b08ba2d4ac32c09407f8
        cifar_box.pt 1887433 873cc7e96cf357409cecbfb62852055ff1f401d1fef274330fdc63e6b2df3c99
        cifar_chbox.pt 1887433 b4c59ab6786927da6fd7d6cbbe3e268c4f9183d6c133c00943a154bf22822fbb
        cifar_crowinbp1to1.pt 1887433 9a01a423a81da62032e0cbb5e6e613e4f6b591e0373bd470a8df5358abbf5edc
        cifar_crownibp1to0.pt 1887433 43e55904d5af2b6b83dce3373c83e700b3484ee1e36ba9ce34d979ac48d7b710
        cifar_czono.pt 1887433 ef02b3ee262968d53d9ae71bdaac80611a4d2eb4b20018faf7fe574463c0a0bc
    """,
    ("convex_adversarial", "models"): """
        mnist.pth 666692 95014ab0c04c73f48b3be0cb7acc42aff60ce4420c6c43bec25e9a1447279e08
    """,
    ("convex_adversarial", "models_scaled"): """
        mnist_small_0_3.pth 2272496 1f2bc54fa1506831b73bbd28c6669eaa487ab78bcd97455390f8d7cb9c7ed3ca
    """,
    ("alpha-beta-crown", "complete_verifier/models/sdp"): """
        mnist_cnn_a_adv.model 668471 3a1dbfc656e45be2cf6e8ae709c43da0fa0f3b71762c8a0842df72868f2b3459
    """,
    ("craft", "mat_models"): """
        deq_MNIST_SingleFcNet_m=20.mat 387762 edc1cf0cf69bfb968104617005980952a0df6acf69dbe4d881ef6c6aa51222f6
    """,
    ("craft", "models"): """
        mon_h40_m20.0.pt 141297 da3c330f1ed125597dd8bc13287c878e7b88c04f3703826527bc2f4fd228844f
        mon_h100_m20.0.pt 400215 78f3e51533bf6d40f8d9f66309fa3dbd841f77ef71e52dcf9b9cdb550dc2bce2
        mnist_mon_h200_m20.0.pt 959141 4920eb6d841920821d52e7ba6aa7f03db372e8fb1d8b4424974f9c49042e2048
        mnist_sm_mon_conv_c8_k6_s3_m20.0.pt 14839 8306d7e223f285c7b3fff46c07e1977d53a1148549115622a48e98b08e3d93ff
        cifar_mon_h200_m20.0.pt 2789541 ae17e8515eaf1805e1fb216c59a62cf349b713afda0005cd668c2e8a9be84e7b
        cifar_tiny_mon_conv_c8_k6_s3_m20.0.pt 20023 bf951381874e827c1be30c07f7973e836807a0072d47426aeec3741dd1946aac
    """,
}


def main(folders: list[str]) -> int:
    """Download the missing files of these folders, or of all; return 1 if git fails or a SHA-256 differs."""
    if unknown := [folder for folder in folders if folder not in ORIGINS]:
        print(f"found the folder {unknown[0]!r}, allowed: {', '.join(ORIGINS)}")
        return 2
    count = 0
    errors = []
    for (folder, repository_folder), lines in FILES.items():
        if folders and folder not in folders:
            continue
        files = [line.split() for line in lines.strip().splitlines()]
        count += len(files)
        missing = [file for file in files if not _is_there(FOLDER / folder / file[0], file[2])]
        if missing:
            try:
                errors += _fetch(folder, repository_folder, missing)
            except subprocess.CalledProcessError:
                print(f"{ORIGINS[folder][0]}: git failed; check the network, or set a mirror")
                return 1
    print(f"{count - len(errors)} of {count} files are in {FOLDER}", *errors, sep="\n")
    return 1 if errors else 0


def _is_there(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _fetch(folder: str, repository_folder: str, files: list[list[str]]) -> list[str]:
    """Download files of one repository. Return an error line for each whose SHA-256 differs; it is not written."""
    url, commit = ORIGINS[folder]
    errors = []
    with TemporaryDirectory() as clone:
        _git(clone, "init", "--quiet")
        _git(clone, "remote", "add", "origin", url)
        _git(clone, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", commit)
        for name, size, digest in files:
            content = _git(clone, "show", f"{commit}:{repository_folder}/{name}")
            if (len(content), hashlib.sha256(content).hexdigest()) == (int(size), digest):
                (FOLDER / folder).mkdir(parents=True, exist_ok=True)
                (FOLDER / folder / name).write_bytes(content)
            else:
                found = f"found {len(content)} bytes, not the {size} of SHA-256 {digest}"
                errors.append(f"{url} {repository_folder}/{name}: {found}")
    return errors


def _git(directory: str, *arguments: str) -> bytes:
    """Return what git prints. Raises CalledProcessError, after git's own message."""
    return subprocess.run(["git", "-C", directory, *arguments], check=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
