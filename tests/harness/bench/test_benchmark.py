"""`python -m harness.benchmark`: its tables and its JSON, at a size where only their shape means anything."""

import json

import pandas as pd
import pytest
from one_network import train_and_evaluate

from harness.bench import steps
from harness.command_line import main
from harness.common import names
from harness.machine import device
from harness.storage import folder
from harness.training import compilation

SMALL = ["cnn5", "--dataset", "digits", "--width", "0.05", "--batch-size", "8", "--rounds", "1"]


@pytest.fixture(scope="module")
def trained(tiny_training, tiny_evaluation, tmp_path_factory):
    network_dir = tmp_path_factory.mktemp("trained")
    train_and_evaluate(tiny_training(width=0.05), [tiny_evaluation()], network_dir)
    return network_dir


def test_all_kinds_of_steps_are_compared_with_plain_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: "not in this test")
    monkeypatch.setattr(device, "has_bf16", lambda device: True)
    assert main("benchmark", [*SMALL, "--only", "steps", "--json", str(tmp_path / "figures.json")]) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    rows = {row["step"]: row for row in written["steps"]}
    methods = ("plain", "ibp", "crown-ibp", "crown-ibp unfused")
    kinds = {f"{kind}{precision} eager" for kind in methods for precision in ("", " bf16")}
    attacking = ("sabr", "mtl-ibp", "cc-ibp", "exp-ibp", "cc-dist", "ad-cert", "pgd")
    assert set(rows) == {*kinds, *(f"{method} eager" for method in attacking)}
    for kind, row in rows.items():
        assert row["examples/s"] == pytest.approx(rows["plain eager"]["examples/s"] / row["cost over plain"]), kind
        assert row[steps.PRODUCTS] > 0 and row[steps.ELEMENT_WISE] > 0, kind
    assert written["options"]["batch_size"] == 8
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in rows)


def test_steps_in_bf16_are_left_out_where_the_machine_has_no_instructions_for_them(monkeypatch, capsys):
    monkeypatch.setattr(device, "has_bf16", lambda device: False)
    assert main("benchmark", [*SMALL, "--only", "steps", "--kinds", "ibp* eager"]) == 0
    printed = capsys.readouterr().out
    assert "no steps in bf16" in printed and "ibp eager" in printed and "bf16 eager" not in printed


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("aten::mkldnn_convolution", steps.PRODUCTS),
        ("aten::addmm", steps.PRODUCTS),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n", steps.PRODUCTS),
        ("aten::native_batch_norm", steps.ELEMENT_WISE),
        ("cudnn::bn_fw_tr_1C11_kernel_NCHW", steps.ELEMENT_WISE),
        ("triton_poi_fused_addmm_relu_0", steps.ELEMENT_WISE),
        ("## Call CompiledFxGraph f4x ##", steps.ELEMENT_WISE),
        ("aten::linalg_vector_norm", steps.REST),
        ("at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>", steps.REST),
    ],
)
def test_a_kernel_counts_as_product_or_as_element_wise_work_by_its_name(kernel, part):
    assert steps.part_of(kernel) == part


def test_the_measured_bounds_are_those_of_the_verdicts(trained, tmp_path):
    options = ["--images", "60", "--bounds", "ibp", "crown-ibp", "--json", str(tmp_path / "figures.json")]
    assert main("benchmark", ["--only", "bounds", "evaluation", "--trained", str(trained), *options]) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    (evaluation,) = written["evaluation"]
    assert evaluation["s an example"] > 0 and evaluation["cost over the first network"] == 1
    rows = {row["bound"]: row for row in written["bounds"]}
    (evaluation_dir,) = folder.evaluation_folders(trained)
    verdicts = pd.read_parquet(evaluation_dir / folder.VERDICTS)
    ibp, crown_ibp = rows["ibp"], rows["crown-ibp"]
    assert ibp["network"] == "cnn5 ibp seed 0"
    assert ibp["certified %"] == pytest.approx(100 * (verdicts[names.margin_column("ibp")] > 0).mean())
    assert ibp["width"] == pytest.approx(verdicts[names.WIDTH].mean(), rel=1e-9)
    assert crown_ibp["width"] < ibp["width"] and crown_ibp["lower"] > ibp["lower"]
    assert crown_ibp["certified %"] >= ibp["certified %"]


@pytest.mark.slow
def test_networks_near_the_edge_are_decided(tmp_path):
    options = ["--only", "verifier", "--images", "2", "--json", str(tmp_path / "figures.json")]
    assert main("benchmark", options) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())["verifier"]
    assert [row["network"] for row in rows] == ["2 layers, explicit", "2 layers, equilibrium"]
    assert all(row["decided"] == 1 and row["wrong"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["vgg"], "models"),
        (["--kinds", "ibp"], "plain eager\n  ibp eager"),
        (["--trained", "{trained}", "--images", "100000"], "100000"),
        (["--trained", "{trained}/none"], "training.json"),
    ],
)
def test_wrong_input_is_refused(trained, options, message, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: "not in this test")
    assert main("benchmark", [option.format(trained=trained) for option in options]) == 2
    assert message in capsys.readouterr().err
