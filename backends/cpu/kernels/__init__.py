"""Kernel families, one declaration each. A file here is found by itself."""
