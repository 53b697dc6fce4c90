"""Kernels of the Rust core: the only importers of it."""
