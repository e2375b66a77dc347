"""What a model says of every row of the pool, as pool columns."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jsel.data.device import read_steps
from jsel.data.rows import Rows
from jsel.selectors import Pool
from jsel.sharding import row_axes, rows_sharding
from jsel.training.gradients import Learner
from jsel.training.step import Given


def collect(
  learner: Learner,
  params: Any,
  variables: Any,
  batches: Iterator[Given],
  names: tuple[str, ...],
  *,
  size: int,
  mesh: Mesh,
) -> dict[str, jax.Array]:
  """The per-row outputs ``names`` of the loss function over the whole pool, in evaluation mode.

  Every device goes through the rows that it holds or is to hold, so that no
  output leaves it.

  Args:
    learner: the model and its loss.
    params, variables: of the model.
    batches: of `resident_batches` or `read_batches`.
    names: outputs to collect, e.g. ``("features",)``.
    size: rows of the pool with padding, a multiple of 512.
    mesh: the mesh.

  Returns:
    ``{name: [n, ...]}`` split by rows as the pool is; padded rows hold what the
    model says of some row.
  """

  @jax.jit
  def outputs(params, variables, inputs, labels):
    said = learner.score(params, variables, inputs, labels)
    return {name: said[name] for name in names}

  def join(*parts):
    rows = size // mesh.size
    own = [part.reshape(mesh.size, -1, *part.shape[1:]) for part in parts]
    return jnp.concatenate(own, axis=1)[:, :rows].reshape(size, *parts[0].shape[1:])

  said = [outputs(params, variables, given.inputs, given.labels) for given in batches]
  return jax.jit(lambda said: jax.tree.map(join, *said), out_shardings=rows_sharding(mesh))(said)


def resident_batches(pool: Pool, *, batch_size: int, mesh: Mesh) -> Iterator[Given]:
  """The pool in batches of ``batch_size``, each device's part of them from its own rows."""
  axis_name = row_axes(mesh)
  part = batch_size // mesh.size
  rows = P(axis_name)

  def take(inputs, labels, start):
    place = jnp.minimum(start + jnp.arange(part, dtype=jnp.int32), len(labels) - 1)
    return Given(inputs[place], labels[place])

  own = jax.jit(
    jax.shard_map(take, mesh=mesh, in_specs=(rows, rows, P()), out_specs=Given(rows, rows))  # pyrefly: ignore
  )
  for start in range(0, pool.valid.shape[0] // mesh.size, part):
    yield own(pool.rows["inputs"], pool.rows["labels"], np.int32(start))


def read_batches(
  rows: Rows, *, size: int, batch_size: int, mesh: Mesh, threads: int, ahead: int
) -> Iterator[Given]:
  """As `resident_batches`, of rows that are read for it; ``size`` is theirs with padding."""
  part, own = batch_size // mesh.size, size // mesh.size
  place = np.minimum(np.arange(-(-own // part) * part), own - 1).reshape(-1, 1, part)
  ids = place + own * np.arange(mesh.size)[None, :, None]
  ids = np.minimum(ids, rows.size - 1).reshape(len(place), -1).astype(np.int32)
  for batch in read_steps(rows, ids, rows_sharding(mesh), threads=threads, ahead=ahead):
    yield Given(batch["inputs"], batch["labels"])
