"""Pure functions on arrays, for one device or inside `jax.shard_map`."""
