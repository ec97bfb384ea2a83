"""Properties in VNN-LIB files: read, decided, and their counterexamples confirmed."""
