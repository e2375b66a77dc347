"""From a configuration and the shapes of its data to everything that a step is made of."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jsel import models, selectors
from jsel.data.augment import augment
from jsel.data.token_rows import is_tokens
from jsel.selectors import Pool, Selector
from jsel.sharding import padded_size, row_axes, rows_sharding
from jsel.training import losses
from jsel.training.budget import Budget, make_budget
from jsel.training.fit import make_fit
from jsel.training.gradients import Learner
from jsel.training.optimizer import make_optimizer

FEEDS = {"resident": "pool", "planned": "pool", "super_batch": "candidates"}  # and their scopes


class Examples(NamedTuple):
  """What a run has to know of its training data before it holds any of it."""

  size: int
  input_shape: tuple[int, ...]  # [d] features, [h, w, c] images or [l] token ids
  input_dtype: np.dtype
  classes: int
  normalize: Callable[[jax.Array], jax.Array]  # inputs -> float32; token ids as they are
  weighted: bool = False  # whether rows have weights of their own, beside the selector's
  vocabulary: int = 0  # the largest token id + 1, of what is evaluated too; 0: not known, or none


class Setup(NamedTuple):
  """What a step is made of, with nothing allocated yet."""

  budget: Budget
  candidates: int  # rows that a step picks from, 0 where it trains on a plan
  selector: Selector
  make_model: Callable[[nnx.Rngs], nnx.Module]
  convolutional: bool  # whether the model has convolutions
  learner: Learner
  learning_rate: optax.Schedule


def make_setup(config: ConfigDict, examples: Examples, mesh: Mesh) -> Setup:
  """The model, its optimizer and the selector of ``config``.

  Args:
    config: as `jsel.training.config.base_config` makes it.
    examples: of the training set.
    mesh: of devices that need not be there.

  Raises:
    ValueError: if parts of the configuration are unknown, out of range, or do not go together.
  """
  check_batches(config, mesh.size)
  check_reductions(config, mesh.size)
  tokens = is_tokens(examples.input_dtype)
  check_inputs(config, tokens)
  make_model = lambda rngs: models.make(
    config.model.name,
    rngs=rngs,
    input_shape=examples.input_shape,
    classes=examples.classes,
    dtype=config.model.dtype,
    **config.model.get(config.model.name, {}),
  )
  abstract_model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
  graphdef, _, statistics, _ = nnx.split(abstract_model, nnx.Param, nnx.BatchStat, ...)
  known = abstract_model.vocabulary if tokens else 0  # pyrefly: ignore
  if examples.vocabulary > known:
    raise ValueError(
      f"the rows have token {examples.vocabulary - 1}, {config.model.name} knows 0 to {known - 1}:"
      " give those of its encoder's own tokenizer"
    )

  budget = make_budget(config, examples.size)
  candidates = candidate_rows(config, examples.size)
  selector = make_selector(config, examples.size, budget, candidates, mesh)
  if tokens and selector.fit and not config.selector.fit_step:
    raise ValueError(
      f"selector {config.selector.name} fits on features, and token ids are none: set"
      " selector.fit_step to a later step, to fit on what the model makes of the rows"
    )

  if len(examples.input_shape) != 3 and (config.augment.flip or config.augment.crop):
    raise ValueError("augment.flip and augment.crop are for images [h, w, c]: set them off")

  shaped = lambda inputs: inputs.reshape(len(inputs), *examples.input_shape)

  def preprocess(key, inputs, ids):
    inputs = shaped(inputs)
    if config.augment.flip or config.augment.crop:
      inputs = augment(key, inputs, ids, flip=config.augment.flip, crop=config.augment.crop)
    return examples.normalize(inputs)

  convolutional = abstract_model.convolutional  # pyrefly: ignore
  optimizer, learning_rate = make_optimizer(config.optimizer, budget.total_steps)
  learner = Learner(
    graphdef,
    functools.partial(losses.classification, label_smoothing=config.label_smoothing),
    preprocess,
    lambda inputs: examples.normalize(shaped(inputs)),
    optimizer,
    mesh,
    feedback=selector.feedback,
    accumulate=config.accumulate,
    parts=config.deterministic_reductions,
    # Convolutions in a loop are slow on CPU; but outside of one, running means are not bitwise the
    # same, as the compiler contracts them as it fuses them.
    unroll=convolutional and mesh.devices.flat[0].platform == "cpu" and not statistics,
  )
  if selector.fit and config.selector.fit_step:
    # What cannot be fitted is known from shapes, before any step.
    key = jax.eval_shape(lambda: jax.random.key(0))
    pool = pool_shapes(examples, config.feed, mesh)
    features = feature_shapes(config, make_model, examples, mesh)
    jax.eval_shape(make_fit(selector, mesh), key, features, Pool({}, pool.valid))
  return Setup(budget, candidates, selector, make_model, convolutional, learner, learning_rate)


def check_inputs(config: ConfigDict, tokens: bool) -> None:
  """Raises a ValueError if the model does not take the rows of the data.

  Args:
    config: of the run.
    tokens: whether the rows are token ids.
  """
  name = config.model.name
  takes_tokens = {other: kind.takes_tokens for other, kind in models.MODELS.items()}
  if name not in takes_tokens:
    return  # `models.make` names the nearest
  if tokens and not takes_tokens[name]:
    able = " or ".join(other for other in takes_tokens if takes_tokens[other])
    raise ValueError(
      f"the rows are token ids (int32), which {name} would take for numbers: set"
      f" --config.model.name={able}, or save features as float32"
    )
  if takes_tokens[name] and not tokens:
    raise ValueError(
      f"{name} takes token ids, and the rows are none: set --config.data.name=wordnet_tokens, give"
      " int32 of your own, or set another --config.model.name"
    )
  encoder = config.model[name].get("encoder")
  if config.data.name == "wordnet_tokens" and encoder != config.data.encoder:
    raise ValueError(
      f"data.encoder={config.data.encoder} and model.{name}.encoder={encoder}: set both alike, as"
      " token ids are of one encoder"
    )


def check_batches(config: ConfigDict, devices: int) -> None:
  """Raises a ValueError if a batch does not divide among the devices and its parts."""
  if config.batch_size < 1 or config.batch_size % devices:
    raise ValueError(
      f"batch_size={config.batch_size} does not divide among {devices} devices: choose a"
      f" multiple of {devices}"
    )
  parts = config.accumulate
  if parts < 1 or config.batch_size % (parts * devices):
    raise ValueError(
      f"accumulate={parts} does not cut batch_size={config.batch_size} into parts for {devices}"
      f" devices: batch_size has to be a multiple of {max(parts, 1) * devices}"
    )


def check_reductions(config: ConfigDict, devices: int) -> None:
  """Raises a ValueError if sums over a batch cannot be in the fixed order that was asked for."""
  parts, batch_size = config.deterministic_reductions, config.batch_size
  if parts == 0:
    return
  if parts < 1 or parts & (parts - 1) or batch_size % parts:
    raise ValueError(
      f"deterministic_reductions={parts} is no power of two that divides"
      f" batch_size={batch_size}: set one of up to {batch_size & -batch_size}, or 0"
    )
  if parts < devices:
    raise ValueError(
      f"deterministic_reductions={parts} parts are too few for {devices} devices: set the most"
      " devices that the run is ever to have"
    )
  if config.accumulate != 1:
    raise ValueError(
      f"accumulate={config.accumulate} and deterministic_reductions={parts} both cut a batch into"
      " parts: set accumulate=1, the memory of activations is that of a part either way"
    )
  if config.sharding.fsdp != 1:
    raise ValueError(
      f"deterministic_reductions={parts} needs every parameter on every device: set"
      f" sharding.fsdp=1, not {config.sharding.fsdp}"
    )
  if config.eval_batch_size % parts:
    raise ValueError(
      f"eval_batch_size={config.eval_batch_size} does not divide into"
      f" deterministic_reductions={parts} parts: choose a multiple of {parts}"
    )


def candidate_rows(config: ConfigDict, size: int) -> int:
  """Rows that a step of the super-batch feed picks its batch from; 0 for other feeds.

  ``batch_size / ratio``, rounded up to a multiple of the largest power of two
  in the batch size: a number that every mesh of that batch can split, so that
  what is chosen does not depend on the mesh.

  Raises:
    ValueError: if the feed is unknown, or the pool is smaller.
  """
  if config.feed not in FEEDS:
    raise ValueError(f"feed must be {' or '.join(map(repr, FEEDS))}, got {config.feed!r}")
  if FEEDS[config.feed] != "candidates":
    return 0
  ratio = 0.5 if config.selector.ratio is None else config.selector.ratio
  unit = config.batch_size & -config.batch_size
  rows = -(-round(config.batch_size / ratio) // unit) * unit
  if rows > size:
    raise ValueError(
      f"a step of feed='super_batch' picks from {rows} rows and the pool has {size}: lower"
      " batch_size or raise selector.ratio"
    )
  return rows


def make_selector(
  config: ConfigDict, size: int, budget: Budget, candidates: int, mesh: Mesh
) -> Selector:
  """The selector of ``config``, checked against the feed.

  Raises:
    ValueError: if they do not go together, naming what does.
  """
  name, feed = config.selector.name, config.feed
  build = lambda name: selectors.make(
    name,
    size=size,
    rows=round(size * config.batch_size / candidates) if candidates else budget.plan_rows,
    total_steps=budget.total_steps,
    optimizer=optax.adam,
    axis_name=row_axes(mesh),
    **config.selector[name],
  )
  selector = build(name)
  if FEEDS[feed] not in selector.scope:
    able = [other for other in selectors.SELECTORS if FEEDS[feed] in build(other).scope]
    raise ValueError(
      f"selector {name} does not work with feed={feed!r}, which needs one that picks among"
      f" {FEEDS[feed]}: {', '.join(able)}"
    )
  if candidates and config.selector.refresh_steps:
    raise ValueError(
      f"selector.refresh_steps={config.selector.refresh_steps} with feed='super_batch', which"
      " picks at every step: set it to 0"
    )
  if not candidates and selector.least < config.batch_size:
    raise ValueError(
      f"a plan of {name} may have {selector.least} rows, less than a batch of {config.batch_size}:"
      " lower batch_size or raise selector.ratio"
    )
  fit_step = config.selector.fit_step
  if fit_step and selector.fit is None:
    raise ValueError(f"selector.fit_step={fit_step} with {name}, which fits nothing: set it to 0")
  if selector.fit and not fit_step and feed != "resident":
    raise ValueError(
      f"selector {name} fits on features of the whole pool, which feed={feed!r} does not hold:"
      " set selector.fit_step to a later step, to fit on what the model makes of the rows"
    )
  return selector


def pool_shapes(examples: Examples, feed: str, mesh: Mesh) -> Pool:
  """The pool as a mesh holds it, of `jax.ShapeDtypeStruct`: with its rows in the resident feed.

  Weights of rows are there in every feed, as ids of the pool's rows are what feeds have in common.

  An example lies flat: a TPU pads the last axes of what it gathers from to whole tiles, and three
  channels would become 128.
  """
  split = rows_sharding(mesh)
  size = padded_size(examples.size)
  column = lambda dtype, *shape: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=split)
  rows = {}
  if feed == "resident":
    rows["inputs"] = column(examples.input_dtype, math.prod(examples.input_shape))
    rows["labels"] = column(np.int32)
  if examples.weighted:
    rows["weight"] = column(np.float32)
  return Pool(rows, column(np.bool_))  # pyrefly: ignore


def feature_shapes(
  config: ConfigDict,
  make_model: Callable[[nnx.Rngs], nnx.Module],
  examples: Examples,
  mesh: Mesh,
) -> jax.ShapeDtypeStruct:
  """What a selector is fitted on: the pool's rows, or what the model makes of them."""
  pool = pool_shapes(examples, config.feed, mesh)
  if not config.selector.fit_step:
    return pool.rows["inputs"]  # pyrefly: ignore
  model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
  given = jax.ShapeDtypeStruct((1, *examples.input_shape), examples.input_dtype)
  row = jax.eval_shape(examples.normalize, given)
  outputs = nnx.eval_shape(lambda model, x: model(x, train=False), model, row)
  shape = (pool.valid.shape[0], outputs.features.shape[1])
  return jax.ShapeDtypeStruct(shape, np.float32, sharding=rows_sharding(mesh))
