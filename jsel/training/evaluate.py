"""Loss and accuracy over a whole split, padded and masked."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jsel.data.arrays import Split
from jsel.data.device import read_steps
from jsel.data.rows import Rows
from jsel.sharding import place, replicated, rows_sharding
from jsel.training.parts import sum_of_parts


class EvaluationBatch(NamedTuple):
  """Rows on the device, the last batch padded."""

  inputs: jax.Array  # [b, ...]
  labels: jax.Array  # [b] int32
  valid: jax.Array  # [b] bool


class ReadBatches:
  """A split that is read anew at every evaluation, cut into batches of one shape.

  Args:
    rows: the split.
    batch_size: rows of a batch, a multiple of the devices.
    mesh: the mesh.
    threads, ahead: of `jsel.data.device.read_steps`.
  """

  def __init__(self, rows: Rows, *, batch_size: int, mesh: Mesh, threads: int, ahead: int):
    position = np.arange(-(-rows.size // batch_size) * batch_size).reshape(-1, batch_size)
    self._rows = rows
    self._ids = np.minimum(position, rows.size - 1).astype(np.int32)
    self._valid = position < rows.size
    self._sharding = rows_sharding(mesh)
    self._options = {"threads": threads, "ahead": ahead}

  def __iter__(self) -> Iterator[EvaluationBatch]:
    batches = read_steps(self._rows, self._ids, self._sharding, **self._options)
    for batch, valid in zip(batches, self._valid, strict=True):
      yield EvaluationBatch(batch["inputs"], batch["labels"], place(valid, self._sharding))


def batches(
  part: Split | Rows, *, batch_size: int, mesh: Mesh, threads: int, ahead: int, parts: int = 0
) -> Iterable[EvaluationBatch]:
  """A split cut into batches of one shape: on the devices if it is in memory, else read each time.

  Args:
    part: the split.
    batch_size: rows of a batch, at most; a multiple of the devices.
    mesh: the mesh.
    threads, ahead: of `jsel.data.device.read_steps`.
    parts: of `make_evaluation`.
  """
  if isinstance(part, Split):
    options = {"batch_size": batch_size, "mesh": mesh, "parts": parts}
    return evaluation_batches(part.inputs, part.labels, **options)
  return ReadBatches(part, batch_size=batch_size, mesh=mesh, threads=threads, ahead=ahead)


def evaluation_batches(
  inputs: np.ndarray, labels: np.ndarray, *, batch_size: int, mesh: Mesh, parts: int = 0
) -> list[EvaluationBatch]:
  """Arrays cut into batches of one shape, that of ``parts``, which stay on the devices."""
  unit = max(mesh.size, parts)
  batch_size = min(batch_size, -(-len(labels) // unit) * unit)
  batches = []
  for start in range(0, len(labels), batch_size):
    part = slice(start, start + batch_size)
    missing = batch_size - len(labels[part])
    pad = lambda x, missing=missing: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
    valid = np.arange(batch_size) < batch_size - missing
    batch = EvaluationBatch(pad(inputs[part]), pad(labels[part]), valid)
    batches.append(jax.tree.map(lambda x: place(x, rows_sharding(mesh)), batch))
  return batches


def make_evaluation(
  graphdef: nnx.GraphDef,
  loss_function: Callable[[Any, jax.Array], dict[str, jax.Array]],
  preprocess: Callable[[jax.Array], jax.Array],
  *,
  mesh: Mesh,
  parts: int = 0,
  unroll: bool = False,
) -> Callable[[Any, Any, Iterable[EvaluationBatch]], dict[str, float]]:
  """``evaluate(params, variables, batches) -> {"loss", "accuracy"}``, fetched once at the end.

  With ``parts``, which divides the batches, bitwise the same on any number of devices up to that.
  """

  def of_rows(model, batch):
    params, variables = model
    outputs = nnx.merge(graphdef, params, variables)(
      preprocess(batch.inputs), valid=batch.valid, train=False
    )
    rows = loss_function(outputs, batch.labels)
    total = lambda name: jnp.where(batch.valid, rows[name], 0).sum()
    return (total("loss"), total("correct")), ()

  if parts:
    of_rows = sum_of_parts(of_rows, parts=parts, mesh=mesh, unroll=unroll)

  def totals(params, variables, batch, so_far):
    (loss, correct), _ = of_rows((params, variables), batch)
    new = (loss, correct, batch.valid.sum(dtype=jnp.int32))
    return jax.tree.map(jnp.add, so_far, new)

  compiled = jax.jit(totals, out_shardings=replicated(mesh))
  zero = jax.device_put((np.float32(0), np.float32(0), np.int32(0)), replicated(mesh))

  def evaluate(params, variables, batches):
    so_far = zero
    for batch in batches:
      so_far = compiled(params, variables, batch, so_far)
    loss, correct, count = jax.device_get(so_far)
    return {"loss": float(loss) / int(count), "accuracy": float(correct) / int(count)}

  return evaluate
