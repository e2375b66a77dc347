"""A text classifier on a BERT-type encoder, whose last layers are trained with it."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jsel.models.bert import Bert, BertBlocks
from jsel.models.bert_weights import arrays
from jsel.models.encoders import open_bert
from jsel.models.initial import to_softmax
from jsel.models.outputs import Outputs, check_tokens
from jsel.models.pooling import Pooling, pool
from jsel.models.transformer import through
from jsel.models.weights import Tensors


class Frozen(nnx.Variable):
  """An array that is used as it is: nothing is differentiated by it, no optimizer knows it."""


class FineTunedBert(nnx.Module):
  """The encoder, the last of its layers and a linear head trained, all that is below frozen.

  Token, position and type embeddings and their normalisation are frozen whatever is trained: they
  are half of all-MiniLM-L6-v2, and few texts have a given word. There is no dropout. The encoder
  is drawn at random here, for a model is built inside a compiled program; `jsel.models.pretrained`
  gives the arrays of its file, which `jsel.training.state.init_state` puts in their place.

  Args:
    rngs: of the initial parameters.
    input_shape: of one text, ``[l]`` token ids.
    classes: columns of the logits.
    dtype: "float32" or "bfloat16" products; parameters, normalisations and the head are float32.
    encoder: a folder of a model of type bert, or a name of `jsel.models.encoders.PACKAGED`.
    train_layers: the last so many layers are trained, 0 for the head alone.
    pooling: of the tokens' states (`jsel.models.pooling.pool`) to the features, which are not
      brought to length 1.

  Raises:
    ValueError: if the encoder is not there, with the command that installs it, or is no bert; or if
      it does not have as many layers or positions.
  """

  convolutional = False
  takes_tokens = True

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    input_shape: tuple[int, ...],
    classes: int,
    dtype: str = "float32",
    encoder: str = "all-MiniLM-L6-v2",
    train_layers: int = 2,
    pooling: Pooling = "mean",
  ):
    path, config = open_bert(encoder)
    if len(input_shape) != 1:
      raise ValueError(
        f"a fine_tuned_bert takes token ids [l], got input_shape={tuple(input_shape)}"
      )
    if input_shape[0] > config.positions:
      raise ValueError(
        f"texts of {input_shape[0]} tokens: {encoder} has {config.positions} positions, cut them,"
        " those of WordNet by --config.data.max_length"
      )
    if not 0 <= train_layers <= config.layers:
      raise ValueError(
        f"train_layers={train_layers}: {encoder} has {config.layers} layers to train, 0 trains the"
        " head alone"
      )
    if pooling not in get_args(Pooling):
      raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
    self.input_shape, self.pooling = tuple(input_shape), pooling
    self.vocabulary = config.vocabulary
    self.folder, self.below = str(path), config.layers - train_layers
    self.bert = Bert(config, rngs=rngs, dtype=dtype)
    self.trained = layers_of(self.bert.blocks, self.below, config.layers) if train_layers else None
    self.bert.blocks = layers_of(self.bert.blocks, 0, self.below)
    freeze(self.bert)
    self.head = nnx.Linear(
      config.width, classes, dtype=jnp.float32, kernel_init=to_softmax, rngs=rngs
    )

  def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool) -> Outputs:
    """Logits and features of the texts ``x``, which do not depend on one another.

    Args:
      x: ``[b, l]`` int32 token ids below `vocabulary`, -1 for the padding after them.
      valid: not used.
      train: not used.
    """
    del valid, train
    check_tokens(x, self.input_shape)
    mask = x >= 0
    states = self.bert.embedded(jnp.where(mask, x, 0))
    step = lambda block, x, item: (block(x, mask), item)
    states = through(self.bert.blocks, states, (), step)[0]
    if self.trained is not None:
      states = through(self.trained, states, (), step)[0]
    features = pool(states, mask, pooling=self.pooling)
    return Outputs(self.head(features), features)

  def pretrained(self) -> dict[str, np.ndarray]:
    """The encoder's arrays from its file, by their path in this model; the head has none.

    Raises:
      ValueError: if the file is missing or broken, or of other sizes than config.json says.
    """
    path, config = open_bert(self.folder)
    found = {}
    for name, array in arrays(Tensors(path, prefixes=("bert.",)), config):
      if name.startswith("blocks.") and self.trained is not None:
        found[name.replace("blocks", "trained", 1)] = array[self.below :]
        array = array[: self.below]
      found[f"bert.{name}"] = array
    return found


def layers_of(blocks: BertBlocks, first: int, end: int) -> BertBlocks:
  """The layers [first, end) of stacked ones."""
  graph, stack = nnx.split(blocks)
  return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[first:end], stack))


def freeze(module: nnx.Module) -> None:
  """Makes all parameters of ``module`` `Frozen`."""
  for _, part in list(nnx.iter_modules(module)):
    for name, variable in list(vars(part).items()):
      if isinstance(variable, nnx.Param):
        setattr(part, name, Frozen(variable[...]))
