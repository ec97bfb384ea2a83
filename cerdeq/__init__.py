"""Certified bounds of neural networks, explicit and equilibrium. Needs torch, and scipy and highspy for `verify`."""

from cerdeq.bounds import bound, margin_spec
from cerdeq.boxes import Box, LinfBall
from cerdeq.branch import Verification, verify
from cerdeq.equilibrium import Equilibrium
from cerdeq.onnx import OnnxError, export_onnx, load_onnx
