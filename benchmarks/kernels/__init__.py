"""Kernels against the best peer, on the same work in the same process."""
