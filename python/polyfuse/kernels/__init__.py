"""Triton kernels, written with tensors of float64 in registers; `backends/triton.py` launches them.

Vectors of K coefficients or P parameters are padded to a power of two; `lane` counts along them.
"""
