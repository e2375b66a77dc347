"""What a model says of every row of the pool, as pool columns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jsel.selectors import Pool
from jsel.sharding import replicated, rows_sharding
from jsel.training.step import gather_rows


def collect(
  graphdef: nnx.GraphDef,
  loss_function: Callable[[Any, jax.Array], dict[str, jax.Array]],
  preprocess: Callable[[jax.Array], jax.Array],
  params: Any,
  variables: Any,
  pool: Pool,
  names: tuple[str, ...],
  *,
  batch_size: int,
  mesh: Mesh,
) -> dict[str, jax.Array]:
  """The per-row outputs ``names`` of the loss function over the whole pool, in evaluation mode.

  Args:
    graphdef, params, variables: the model.
    loss_function: ``(outputs, labels) -> {name: [b, ...]}``.
    preprocess: ``inputs -> x``, without augmentation.
    pool: the pool, with "inputs" and "labels".
    names: outputs to collect, e.g. ``("features",)``.
    batch_size: rows at a time, a multiple of the devices.
    mesh: the mesh.

  Returns:
    ``{name: [n, ...]}`` split by rows as the pool is; padded rows hold what the
    model says of zeros.
  """

  @jax.jit
  def outputs(params, variables, pool, index):
    rows = gather_rows(pool, index, mesh)
    model = nnx.merge(graphdef, params, variables)
    said = model(preprocess(rows.inputs), valid=jnp.ones(index.shape, bool), train=False)
    feedback = loss_function(said, rows.labels)
    return {name: feedback[name] for name in names}

  size = pool.valid.shape[0]
  parts = []
  for start in range(0, size, batch_size):
    index = np.minimum(np.arange(start, start + batch_size, dtype=np.int32), size - 1)
    parts.append(outputs(params, variables, pool, jax.device_put(index, replicated(mesh))))
  join = jax.jit(
    lambda parts: jax.tree.map(lambda *part: jnp.concatenate(part)[:size], *parts),
    out_shardings=rows_sharding(mesh),
  )
  return join(parts)
