"""Learning from a batch: forward, backward, and the optimizer's update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jsel.kernels.reduce import fixed_tree_sum
from jsel.selectors import Batch
from jsel.sharding import replicated, row_axes
from jsel.training.parts import sum_of_parts
from jsel.training.state import TrainState


class Learner(NamedTuple):
  """The model, its loss and its optimizer: everything of a step that is not selection."""

  graphdef: nnx.GraphDef
  loss_function: Callable[[Any, jax.Array], dict[str, jax.Array]]  # (outputs, labels) -> rows
  preprocess: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (key, inputs, ids) -> x
  normalize: Callable[[jax.Array], jax.Array]  # inputs -> x, without augmentation
  optimizer: optax.GradientTransformation
  mesh: Mesh
  feedback: tuple[str, ...] = ()  # outputs of the loss function that are wanted beside the loss
  accumulate: int = 1  # parts that a batch is learnt from one after the other
  parts: int = 0  # equal parts whose gradients are added in a fixed order; 0: as the compiler likes
  unroll: bool = False  # the parts of a device each have a copy of the program

  def __call__(
    self, state: TrainState, inputs: jax.Array, labels: jax.Array, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
    """The state after the update, the rows' outputs ``[b]``, and the step's metrics.

    With ``accumulate`` = A the batch is cut into A parts, row i into part i mod A, so that every
    device has its share of each; the gradient is that of the whole batch, the memory of
    activations that of a part. Batch statistics are then those of the parts, in turn.

    With ``parts`` the batch is cut into runs of consecutive rows, and what is learnt is bitwise the
    same on any number of devices up to that (`jsel.training.parts`). A part is normalised by its
    own statistics, of whose running means the mean is taken.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    batch_size = batch.index.shape[0]
    gradient = jax.grad(self.mean_loss, has_aux=True)
    if self.parts:
      gradients, (variables, said) = self._gradient_in_parts(state, key, inputs, labels, batch)
    elif self.accumulate == 1:
      gradients, (variables, said) = gradient(
        state.params, state.variables, key, inputs, labels, batch
      )
    else:
      cut = lambda x: self._parts(x, batch_size)
      add = lambda a, b: jax.tree.map(jnp.add, a, b)

      def one_part(carry, part):
        total, variables = carry
        gradients, (variables, said) = gradient(state.params, variables, key, *part)
        return (add(total, gradients), variables), said

      zeros = jax.tree.map(jnp.zeros_like, state.params)
      parts = jax.tree.map(cut, (inputs, labels, batch))
      (gradients, variables), said = jax.lax.scan(one_part, (zeros, state.variables), parts)
      gradients = jax.tree.map(lambda g: g / self.accumulate, gradients)
      said = {name: x.swapaxes(0, 1).reshape(batch_size) for name, x in said.items()}

    def update(gradients, opt_state, params):
      updates, opt_state = self.optimizer.update(gradients, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradients)

    learnt = gradients, state.opt_state, state.params
    if self.parts:
      # In a branch, always taken, it is compiled alike wherever gradients come from: outside, the
      # compiler contracts products and sums as it happens to fuse them.
      keep = lambda gradients, opt_state, params: (params, opt_state, jnp.float32(0))
      params, opt_state, norm = jax.lax.cond(state.step >= 0, update, keep, *learnt)
    else:
      params, opt_state, norm = update(*learnt)
    # The compiler splits a plain mean over the devices, in its own order.
    mean = (lambda x: fixed_tree_sum(x) / batch_size) if self.parts else jnp.mean
    metrics = {
      "loss": mean(said["loss"]),
      "accuracy": mean(said["correct"]),
      "grad_norm": norm,
    }
    del said["correct"]
    return (
      state._replace(params=params, variables=variables, opt_state=opt_state),
      said,
      metrics,
    )

  def mean_loss(
    self,
    params: Any,
    variables: Any,
    key: jax.Array,
    inputs: jax.Array,
    labels: jax.Array,
    batch: Batch,
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """The weighted mean loss, and with it the model's new variables and the rows' outputs."""
    x = self.preprocess(key, inputs, batch.index)
    model = nnx.merge(self.graphdef, params, variables, copy=True)
    outputs = model(x, valid=batch.valid, train=True)
    _, _, variables = nnx.split(model, nnx.Param, ...)
    said = self.loss_function(outputs, labels)
    weighted = jnp.where(batch.valid, batch.weight * said["loss"], 0)
    names = {*self.feedback, "loss", "correct"}
    return weighted.sum() / len(labels), (variables, {name: said[name] for name in names})

  def score(
    self, params: Any, variables: Any, inputs: jax.Array, labels: jax.Array
  ) -> dict[str, jax.Array]:
    """The rows' outputs by the model as it is, in evaluation mode; nothing is learnt."""

    def of_rows(same, rows):
      (params, variables), (inputs, labels) = same, rows
      model = nnx.merge(self.graphdef, params, variables, copy=True)
      outputs = model(self.normalize(inputs), valid=jnp.ones(len(labels), bool), train=False)
      return (), self.loss_function(outputs, labels)

    if self.parts:
      of_rows = self._sum_of_parts(of_rows)
    return of_rows((params, variables), (inputs, labels))[1]

  def _gradient_in_parts(
    self, state: TrainState, key: jax.Array, inputs: jax.Array, labels: jax.Array, batch: Batch
  ) -> tuple[Any, tuple[Any, dict[str, jax.Array]]]:
    """What `jax.grad` of `mean_loss` gives, from each part's alone."""

    def of_part(same, rows):
      gradients, (variables, said) = jax.grad(self.mean_loss, has_aux=True)(*same, *rows)
      statistics, _ = nnx.split_state(variables, nnx.BatchStat, ...)
      return (gradients, statistics), said

    same = state.params, state.variables, key
    summed, said = self._sum_of_parts(of_part)(same, (inputs, labels, batch))
    gradients, statistics = jax.tree.map(lambda x: x / self.parts, summed)
    _, others = nnx.split_state(state.variables, nnx.BatchStat, ...)
    said = jax.lax.with_sharding_constraint(said, replicated(self.mesh))
    return gradients, (nnx.merge_state(statistics, others), said)

  def _sum_of_parts(
    self, function: Callable[..., tuple[Any, Any]]
  ) -> Callable[..., tuple[Any, Any]]:
    return sum_of_parts(function, parts=self.parts, mesh=self.mesh, unroll=self.unroll)

  def _parts(self, x: jax.Array, batch_size: int) -> jax.Array:
    parts = x.reshape(batch_size // self.accumulate, self.accumulate, *x.shape[1:]).swapaxes(0, 1)
    spec = jax.P(None, row_axes(self.mesh))
    return jax.lax.with_sharding_constraint(parts, jax.NamedSharding(self.mesh, spec))
