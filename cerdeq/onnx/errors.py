"""The error of ONNX files."""


class OnnxError(ValueError):
    """An ONNX file that cannot be read, or a network that cannot be written as one; the message says what is wrong."""
