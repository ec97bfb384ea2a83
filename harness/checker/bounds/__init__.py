"""Bounds in NumPy, with rounding counted outwards."""
