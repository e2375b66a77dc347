"""Weights of BERT-type encoders from a folder as Hugging Face writes it."""

from pathlib import Path

import numpy as np
from flax import nnx

from jsel.models.bert import Bert, BertConfig
from jsel.models.weights import Settings, Tensors, filled

# Layers' parameters and where a layer of the file has them.
LINEAR = {
  "attended": "attention.output.dense",
  "widen": "intermediate.dense",
  "narrow": "output.dense",
}
NORMS = {"attended_norm": "attention.output.LayerNorm", "narrow_norm": "output.LayerNorm"}


def read_config(folder: Path) -> BertConfig:
  """The sizes in ``folder``/config.json.

  Raises:
    ValueError: if it is of a model of another kind.
  """
  settings = Settings.of(folder)
  if settings["model_type"] != "bert":
    raise ValueError(
      f"{folder}/config.json is of a {settings['model_type']!r} model: only bert is read so"
    )
  if settings.get("position_embedding_type", "absolute") != "absolute":
    raise ValueError(
      f"{folder}/config.json has position_embedding_type="
      f"{settings['position_embedding_type']!r}: only absolute positions are known"
    )
  return BertConfig(
    vocabulary=settings["vocab_size"],
    width=settings["hidden_size"],
    layers=settings["num_hidden_layers"],
    heads=settings["num_attention_heads"],
    hidden=settings["intermediate_size"],
    positions=settings["max_position_embeddings"],
    token_types=settings["type_vocab_size"],
    epsilon=settings.get("layer_norm_eps", 1e-12),
    activation=settings.get("hidden_act", "gelu"),
  )


def load_bert(folder: str | Path, *, dtype: str = "float32") -> Bert:
  """The encoder in ``folder``: config.json and model.safetensors, whole or in parts.

  Args:
    folder: of a model of type bert; heads for other tasks and the pooler are left aside.
    dtype: "float32" or "bfloat16", of the products.

  Raises:
    ValueError: if a file is missing or broken, or the model is of another kind.
  """
  folder = Path(folder).expanduser()
  tensors = Tensors(folder, prefixes=("bert.",))
  config = read_config(folder)
  make = lambda: Bert(config, rngs=nnx.Rngs(0), dtype=dtype)
  return filled(make, dict(arrays(tensors, config)))


def arrays(tensors: Tensors, config: BertConfig):
  """The parameters of a `Bert` by their path."""
  width, hidden = config.width, config.hidden
  table = lambda name, rows: tensors(f"embeddings.{name}_embeddings.weight", rows, width)
  yield "words", table("word", config.vocabulary)
  yield "positions", table("position", config.positions)
  yield "token_types", table("token_type", config.token_types)
  yield "norm.scale", tensors("embeddings.LayerNorm.weight", width)
  yield "norm.bias", tensors("embeddings.LayerNorm.bias", width)
  names = [f"encoder.layer.{layer}" for layer in range(config.layers)]
  stacked = lambda read: np.stack([read(name) for name in names])
  parts = ("query", "key", "value")
  yield (
    "blocks.queries_keys_values.kernel",
    stacked(
      lambda name: np.concatenate(
        [tensors.kernel(f"{name}.attention.self.{part}.weight", width, width) for part in parts], 1
      )
    ),
  )
  yield (
    "blocks.queries_keys_values.bias",
    stacked(
      lambda name: np.concatenate(
        [tensors(f"{name}.attention.self.{part}.bias", width) for part in parts]
      )
    ),
  )
  shapes = {"attended": (width, width), "widen": (width, hidden), "narrow": (hidden, width)}
  for path, where in LINEAR.items():
    _, fan_out = shapes[path]
    weight = lambda name, where=where, fans=shapes[path]: tensors.kernel(
      f"{name}.{where}.weight", *fans
    )
    bias = lambda name, where=where, fan_out=fan_out: tensors(f"{name}.{where}.bias", fan_out)
    yield f"blocks.{path}.kernel", stacked(weight)
    yield f"blocks.{path}.bias", stacked(bias)
  for path, where in NORMS.items():
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
      read = lambda name, where=where, theirs=theirs: tensors(f"{name}.{where}.{theirs}", width)
      yield f"blocks.{path}.{ours}", stacked(read)
