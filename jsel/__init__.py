"""Data selection for JAX: which examples a model sees, decided inside the training step."""

from jsel.sharding import make_mesh, pad_rows, padded_size, shard

__version__ = "0.1.0"
__all__ = ["make_mesh", "pad_rows", "padded_size", "shard"]
