"""CRDS-R: RDS+ on random projections of several layers."""

import functools

import jax
import jax.numpy as jnp

from jsel.kernels import projection
from jsel.kernels.rows import AxisName
from jsel.kernels.similarity import Duplicates
from jsel.selectors.finite import check_finite
from jsel.selectors.parts import Cost, Method, Task
from jsel.selectors.rds import Transform, by_turns, directions, matching_cost


def crds_r(
  *,
  layers: int = 18,
  dim: int = 0,
  normalize_layers: bool = False,
  duplicates: Duplicates = "next_best",
) -> Method:
  """Each layer of an embedding is projected by random signs of its own; then as `rds`.

  An embedding is ``layers`` pooled hidden states of equal width, one after another.

  Args:
    layers: how many an embedding consists of.
    dim: columns that each is projected to; 0 is the width of one divided by
      ``layers``, so that all together are as wide as one.
    normalize_layers: whether each layer is brought to length 1 before: else layers of
      large norm decide, as in the authors' code.
    duplicates: of `rds`.

  Raises:
    ValueError: if ``layers`` is below 1 or does not divide the width of the embeddings.

  Source: Shu et al., *CRDS*, 2026, arXiv 2602.13773.

  >>> crds_r(layers=2).needs
  ('queries',)
  """
  check_finite("crds_r", layers=layers, dim=dim)
  if layers < 1 or dim < 0:
    raise ValueError(f"crds_r: layers must be at least 1 and dim at least 0, got {layers}, {dim}")

  def sizes(width: int) -> tuple[int, int]:
    if width % layers:
      raise ValueError(
        f"crds_r.layers={layers} does not divide embeddings of {width} columns: set"
        " --config.method.crds_r.layers to how many layers of one width they are, one after another"
      )
    return width // layers, dim or max(width // layers // layers, 1)

  def rank(key: jax.Array, task: Task, count: int):
    width, columns = sizes(task.width)

    project = _projector(layers, width, columns, normalize_layers)
    keys = jax.random.key_data(jax.random.split(key, layers))
    yield from by_turns(task, count, duplicates=duplicates, shared=keys, transform=project)

  def cost(task: Task, count: int) -> Cost:
    _, columns = sizes(task.width)
    return matching_cost(task, count, 2.0 * task.width * columns)

  return Method(("queries",), False, cost, rank)


@functools.lru_cache(maxsize=64)
def _projector(layers: int, width: int, columns: int, normalize_layers: bool) -> Transform:
  def project(keys: jax.Array, x: jax.Array, axis: AxisName) -> jax.Array:
    parts = []
    for layer in range(layers):
      part = x[:, layer * width : (layer + 1) * width]
      part = directions(part)[0] if normalize_layers else part
      key = jax.random.wrap_key_data(keys[layer])
      parts.append(projection.rademacher(key, part, columns, axis_name=axis))
    return jnp.concatenate(parts, axis=1)

  return project
