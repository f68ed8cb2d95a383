"""Backends: what runs programs. One module or package per backend, found by its name."""
