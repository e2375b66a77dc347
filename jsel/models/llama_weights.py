"""Weights of Llama-type decoders: folders as Hugging Face writes them, and GGUF files."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jsel.models.gguf_file import GGUFFile
from jsel.models.llama import Llama, LlamaConfig
from jsel.models.outputs import compute_dtype
from jsel.models.weights import Settings, Tensors, filled

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # of config.json, and GGUF's architectures
# Parts of a layer: what a folder calls them and what a GGUF file does.
PARTS = {
  "attention_norm": ("input_layernorm", "attn_norm"),
  "perceptron_norm": ("post_attention_layernorm", "ffn_norm"),
  "query_norm": ("self_attn.q_norm", "attn_q_norm"),
  "key_norm": ("self_attn.k_norm", "attn_k_norm"),
  "queries": ("self_attn.q_proj", "attn_q"),
  "keys": ("self_attn.k_proj", "attn_k"),
  "values": ("self_attn.v_proj", "attn_v"),
  "attended": ("self_attn.o_proj", "attn_output"),
  "gate": ("mlp.gate_proj", "ffn_gate"),
  "widen": ("mlp.up_proj", "ffn_up"),
  "narrow": ("mlp.down_proj", "ffn_down"),
}
Read = Callable[..., np.ndarray]  # (layer, part, kind, *shape), kind "weight" or "bias"


def load_llama(
  path: str | Path,
  *,
  dtype: str = "float32",
  stored: str = "float32",
  remat: bool = False,
  frozen: int = 0,
) -> Llama:
  """The decoder in ``path``.

  Args:
    path: a folder with config.json and model.safetensors, whole or in parts, of a model of one of
      `MODEL_TYPES`; or a GGUF file of one, which is dequantised.
    dtype: "float32" or "bfloat16", of the products.
    stored, remat, frozen: of `Llama`.

  Raises:
    ValueError: if a file is missing or broken, or the model is of another kind.
  """
  path = Path(path).expanduser()
  held = compute_dtype(stored)
  if path.suffix == ".gguf":
    file = GGUFFile(path)
    config = gguf_config(file)
    named = dict(from_gguf(file, config, held))
  else:
    config = folder_config(path)
    named = dict(from_folder(Tensors(path), config, held))
  options = {"dtype": dtype, "stored": stored, "remat": remat, "frozen": frozen}
  return filled(lambda: Llama(config, rngs=nnx.Rngs(0), **options), named)


def folder_config(folder: Path) -> LlamaConfig:
  """The sizes in ``folder``/config.json.

  Raises:
    ValueError: if it is of a model of another kind.
  """
  settings = Settings.of(folder)
  kind = settings["model_type"]
  told = f"{folder}/config.json"
  if kind not in MODEL_TYPES:
    raise ValueError(f"{told} is of a {kind!r} model: only {', '.join(MODEL_TYPES)} are read so")
  if settings.get("hidden_act", "silu") != "silu":
    raise ValueError(f"{told} has hidden_act={settings['hidden_act']!r}: only silu is known")
  if (kind != "qwen2" and settings.get("attention_bias")) or settings.get("mlp_bias"):
    raise ValueError(f"{told} has biases, which a {kind} is not expected to have: only qwen2's are")
  heads = settings["num_attention_heads"]
  positions = settings["max_position_embeddings"]
  if settings.get("use_sliding_window", kind == "mistral") and settings.get("sliding_window"):
    # Within a window, attention is that of a model without one.
    positions = min(positions, settings["sliding_window"])
  head_width = settings.get("head_dim") or settings["hidden_size"] // heads
  return LlamaConfig(
    vocabulary=settings["vocab_size"],
    width=settings["hidden_size"],
    layers=settings["num_hidden_layers"],
    heads=heads,
    groups=settings.get("num_key_value_heads") or heads,
    head_width=head_width,
    hidden=settings["intermediate_size"],
    positions=positions,
    epsilon=settings["rms_norm_eps"],
    frequencies=folder_frequencies(settings, head_width, told),
    tied=settings.get("tie_word_embeddings", False),
    bias=kind == "qwen2",
    head_norm=kind == "qwen3",
  )


def folder_frequencies(settings: Settings, head_width: int, told: str) -> tuple[float, ...]:
  """Of the rotations, as a config.json describes them.

  Raises:
    ValueError: for a scaling other than "linear" and "llama3".
  """
  said: dict[str, Any] = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
  base = settings.get("rope_theta") or said.get("rope_theta") or 10_000.0
  frequencies = plain_frequencies(head_width, base)
  kind = said.get("rope_type") or said.get("type") or "default"
  if kind == "default":
    return tuple(frequencies.tolist())
  if kind == "linear":
    return tuple((frequencies / said["factor"]).tolist())
  if kind == "llama3":
    return tuple(stretched(frequencies, said).tolist())
  raise ValueError(f"{told} scales positions by {kind!r}: only linear and llama3 are known")


def plain_frequencies(head_width: int, base: float) -> np.ndarray:
  """Radians a position, ``[head_width / 2]`` float64, from 1 down to almost 1 / ``base``."""
  return base ** (-np.arange(0, head_width, 2) / head_width)


def stretched(frequencies: np.ndarray, said: dict[str, Any]) -> np.ndarray:
  """Slow rotations slowed down by a factor, fast ones as they are, and a ramp between (Llama 3.1).

  Source: Grattafiori et al., *The Llama 3 Herd of Models*, 2024, arXiv 2407.21783.
  """
  turns = said["original_max_position_embeddings"] * frequencies / (2 * math.pi)
  low, high = said["low_freq_factor"], said["high_freq_factor"]
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return frequencies * (kept + (1 - kept) / said["factor"])


def gguf_config(file: GGUFFile) -> LlamaConfig:
  """The sizes among a GGUF file's settings.

  Raises:
    ValueError: if it is of a model of another kind.
  """
  kind = file["general.architecture"]
  if kind not in MODEL_TYPES:
    raise ValueError(f"{file.path} is of a {kind!r} model: only {', '.join(MODEL_TYPES)} are read")
  if file.get(f"{kind}.rope.scaling.type", "none") not in ("none", "linear"):
    raise ValueError(
      f"{file.path} scales positions by {file[f'{kind}.rope.scaling.type']!r}: only linear is known"
    )
  heads = file[f"{kind}.attention.head_count"]
  width = file[f"{kind}.embedding_length"]
  head_width = file.get(f"{kind}.attention.key_length", width // heads)
  frequencies = plain_frequencies(head_width, file.get(f"{kind}.rope.freq_base", 10_000.0))
  frequencies = frequencies / file.get(f"{kind}.rope.scaling.factor", 1.0)
  if "rope_freqs.weight" in file:  # Llama 3.1's factors, worked out
    frequencies = frequencies / file("rope_freqs.weight", head_width // 2)
  return LlamaConfig(
    vocabulary=len(file["tokenizer.ggml.tokens"]),
    width=width,
    layers=file[f"{kind}.block_count"],
    heads=heads,
    groups=file.get(f"{kind}.attention.head_count_kv", heads),
    head_width=head_width,
    hidden=file[f"{kind}.feed_forward_length"],
    positions=file[f"{kind}.context_length"],
    epsilon=file[f"{kind}.attention.layer_norm_rms_epsilon"],
    frequencies=tuple(np.float64(frequencies).tolist()),
    tied="output.weight" not in file,
    bias=kind == "qwen2",
    head_norm=kind == "qwen3",
  )


def from_folder(
  tensors: Tensors, config: LlamaConfig, held: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters of a `Llama` by their path, of safetensors, its matrices in dtype ``held``."""
  table = (config.vocabulary, config.width)
  yield "words", tensors("model.embed_tokens.weight", *table).astype(held)
  yield "norm.scale", tensors("model.norm.weight", config.width)
  if not config.tied:
    yield "head", tensors("lm_head.weight", *table).astype(held)
  read = lambda layer, part, kind, *shape: tensors(
    f"model.layers.{layer}.{PARTS[part][0]}.{kind}", *shape
  )
  yield from stacked(read, config, held)


def from_gguf(
  file: GGUFFile, config: LlamaConfig, held: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters of a `Llama` by their path, of a GGUF file, its matrices in dtype ``held``."""
  table = (config.vocabulary, config.width)
  yield "words", file("token_embd.weight", *table).astype(held)
  yield "norm.scale", file("output_norm.weight", config.width)
  if not config.tied:
    yield "head", file("output.weight", *table).astype(held)
  # The two columns of a rotation are side by side in files of Llamas, and not in those of Qwens.
  paired = file["general.architecture"] == "llama"

  def read(layer: int, part: str, kind: str, *shape: int) -> np.ndarray:
    found = file(f"blk.{layer}.{PARTS[part][1]}.{kind}", *shape)
    if paired and part in ("queries", "keys"):
      pairs = found.reshape(-1, config.head_width // 2, 2, *shape[1:])
      return pairs.swapaxes(1, 2).reshape(shape)
    return found

  yield from stacked(read, config, held)


def stacked(read: Read, config: LlamaConfig, held: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters of all layers, the layers first."""
  width, hidden = config.width, config.hidden
  queries, keys = config.heads * config.head_width, config.groups * config.head_width
  stack = lambda one: np.stack([one(layer) for layer in range(config.layers)])

  def kernel(*parts: tuple[str, int], fan_in: int) -> np.ndarray:
    # Narrowed layer by layer, so that float32 of all layers are never there.
    weight = lambda layer, part, fan_out: read(layer, part, "weight", fan_out, fan_in).T.astype(
      held
    )
    return stack(lambda layer: np.concatenate([weight(layer, *part) for part in parts], 1))

  scale = lambda part, size: stack(lambda layer: read(layer, part, "weight", size))
  attending = (("queries", queries), ("keys", keys), ("values", keys))
  yield "blocks.attention_norm.scale", scale("attention_norm", width)
  yield "blocks.queries_keys_values.kernel", kernel(*attending, fan_in=width)
  if config.bias:
    bias = lambda layer: np.concatenate([read(layer, part, "bias", n) for part, n in attending])
    yield "blocks.queries_keys_values.bias", stack(bias)
  if config.head_norm:
    yield "blocks.query_norm.scale", scale("query_norm", config.head_width)
    yield "blocks.key_norm.scale", scale("key_norm", config.head_width)
  yield "blocks.attended.kernel", kernel(("attended", width), fan_in=queries)
  yield "blocks.perceptron_norm.scale", scale("perceptron_norm", width)
  yield "blocks.gate_and_widen.kernel", kernel(("gate", hidden), ("widen", hidden), fan_in=width)
  yield "blocks.narrow.kernel", kernel(("narrow", width), fan_in=hidden)
