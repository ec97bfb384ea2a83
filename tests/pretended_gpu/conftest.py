"""Tests in on_it/ run on the pretended GPU: in processes that begin on it, which `test_in_children.py` starts."""

from pretended import is_pretending

collect_ignore = ["test_in_children.py"] if is_pretending() else ["on_it"]
