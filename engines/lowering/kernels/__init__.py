"""Lowering onto Piston's own CPU kernels."""
