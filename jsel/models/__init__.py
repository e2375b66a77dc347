"""Models to train, in Flax NNX, by name."""

import difflib
import inspect
from typing import Any

import numpy as np
from flax import nnx

from jsel.models.cnn import CNN
from jsel.models.fine_tuned_bert import FineTunedBert
from jsel.models.mlp import MLP
from jsel.models.outputs import Outputs
from jsel.models.resnet import ResNet18, ResNet50

__all__ = [
  "CNN",
  "MLP",
  "MODELS",
  "FineTunedBert",
  "Outputs",
  "ResNet18",
  "ResNet50",
  "make",
  "pretrained",
]

MODELS = {
  "cnn": CNN,
  "fine_tuned_bert": FineTunedBert,
  "mlp": MLP,
  "resnet18": ResNet18,
  "resnet50": ResNet50,
}


def make(
  name: str,
  *,
  rngs: nnx.Rngs,
  input_shape: tuple[int, ...],
  classes: int,
  dtype: str = "float32",
  **options: Any,
) -> nnx.Module:
  """A new model: ``model(x, valid=None, train=...) -> Outputs(logits, features)``.

  A model holds parameters (`nnx.Param`) and, in other variables, statistics where it
  normalises (`nnx.BatchStat`) and what is not trained; never a stream of random numbers:
  it is used as a function of its state, in plain ``jax.jit``; inside ``jax.grad`` merge with
  ``copy=True``, else statistics could not be replaced. It says in ``convolutional`` whether it
  has convolutions, which XLA runs serially on a CPU inside ``lax.scan`` or ``lax.cond``, and in
  ``takes_tokens`` whether its rows are token ids, then in ``vocabulary`` how many it knows.

  Args:
    name: a key of `MODELS`.
    rngs: of the initial parameters.
    input_shape: of one row: ``[d]``, ``[h, w, c]`` for images in [0, 1], or ``[l]`` token ids.
    classes: columns of the logits.
    dtype: "float32" or "bfloat16", of the products; parameters and logits are float32.
    **options: of the model, see its class.

  Raises:
    ValueError: for an unknown name or option, with the nearest there is.

  >>> import jax, jax.numpy as jnp
  >>> model = make("mlp", rngs=nnx.Rngs(0), input_shape=(4,), classes=3, hidden=(8,))
  >>> graph, params, rest = nnx.split(model, nnx.Param, ...)
  >>> forward = jax.jit(lambda params, rest, x: nnx.merge(graph, params, rest)(x, train=False))
  >>> forward(params, rest, jnp.zeros((2, 4))).logits.shape
  (2, 3)
  """
  if name not in MODELS:
    raise ValueError(unknown("model", name, list(MODELS)))
  taken = list(inspect.signature(MODELS[name].__init__).parameters)
  for option in options:
    if option not in taken:
      own = [n for n in taken if n not in ("self", "rngs", "input_shape", "classes", "dtype")]
      raise ValueError(unknown(f"option of {name}", option, own))
  return MODELS[name](
    rngs=rngs, input_shape=tuple(input_shape), classes=classes, dtype=dtype, **options
  )


def pretrained(model: nnx.Module) -> dict[str, np.ndarray]:
  """Arrays that training begins with in place of those that `make` has drawn.

  A model has them where it has a method ``pretrained``. They are no part of `make`, so that a
  model can be built inside a compiled program, and its shapes known without reading a file.

  Args:
    model: as `make` gives it; its shapes are enough (`nnx.eval_shape`).

  Returns:
    Arrays by their path in the model with dots between; none of most models.

  >>> pretrained(make("mlp", rngs=nnx.Rngs(0), input_shape=(4,), classes=3))
  {}
  """
  return model.pretrained() if hasattr(model, "pretrained") else {}


def unknown(kind: str, name: str, names: list[str]) -> str:
  """What to tell of a name that does not exist."""
  near = difflib.get_close_matches(str(name), names, n=1, cutoff=0)[0]
  return f"there is no {kind} {name!r}, did you mean {near!r}? There are {', '.join(names)}"
