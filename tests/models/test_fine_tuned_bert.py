"""The classifier on a BERT: it begins as the encoder, and trains its last layers alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jsel.models import make, pretrained
from jsel.models.bert_weights import load_bert
from jsel.models.encoders import bert_tokenizer, open_encoder
from jsel.models.fine_tuned_bert import Frozen
from jsel.models.pooling import pool
from tests import packaged, tiny_bert

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")
pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")

LENGTH = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_bert.write(tmp_path_factory.mktemp("models") / "tiny")


def new(encoder, length=LENGTH, **options):
  """The model before training, with the arrays of its encoder's file."""
  options = {"rngs": nnx.Rngs(0), "input_shape": (length,), "classes": 3, **options}
  model = make("fine_tuned_bert", encoder=str(encoder), **options)
  pure = nnx.to_pure_dict(nnx.state(model))
  given = pretrained(model)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  taken = lambda path, leaf: jnp.asarray(given.get(name(path), leaf))
  state = nnx.state(model)
  nnx.replace_by_pure_dict(state, jax.tree_util.tree_map_with_path(taken, pure))
  nnx.update(model, state)
  return model


def texts(rng, count=6, length=LENGTH, vocabulary=204):
  tokens = rng.integers(0, vocabulary, (count, length)).astype(np.int32)
  tokens[np.arange(length) >= rng.integers(2, length + 1, (count, 1))] = -1
  return tokens


@pytest.mark.parametrize("train_layers", [0, 1, 2])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_before_training_features_are_those_of_the_encoder(folder, rng, train_layers, pooling):
  tokens = texts(rng)
  model = new(folder, train_layers=train_layers, pooling=pooling)
  found = model(jnp.asarray(tokens), train=False)
  mask = tokens >= 0
  states = load_bert(folder)(jnp.asarray(np.where(mask, tokens, 0)), jnp.asarray(mask))
  expected = pool(states, jnp.asarray(mask), pooling=pooling)[0]
  # The same sums of float32 products, in programs of their own.
  np.testing.assert_allclose(found.features, expected, atol=1e-5, rtol=1e-5)


def test_what_padding_stands_for_and_how_long_it_is_changes_nothing(folder, rng):
  tokens = texts(rng, length=7)
  short = new(folder, length=7)(jnp.asarray(tokens), train=True).features
  longer = np.pad(tokens, [(0, 0), (0, 9)], constant_values=-1)
  long = new(folder, length=16)(jnp.asarray(longer), train=True).features
  # Sums over keys that weigh nothing.
  np.testing.assert_allclose(long, short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("train_layers", [0, 1, 2])
def test_the_last_layers_and_the_head_are_parameters_and_nothing_else(folder, rng, train_layers):
  model = new(folder, train_layers=train_layers)
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  assert len(jax.tree.leaves(rest)) == len(jax.tree.leaves(nnx.state(model, Frozen)))
  trained = {leaf.shape[0] for leaf in jax.tree.leaves(params.get("trained", {}))}
  assert trained == ({train_layers} if train_layers else set())
  assert {leaf.shape[0] for leaf in jax.tree.leaves(rest["bert"]["blocks"])} == {2 - train_layers}
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  whole = count(nnx.state(load_bert(folder)))
  assert count(params) + count(rest) == whole + 16 * 3 + 3
  tokens = jnp.asarray(texts(rng))

  def loss(params):
    logits = nnx.merge(graph, params, rest, copy=True)(tokens, train=True).logits
    return -jax.nn.log_softmax(logits)[:, 0].mean()

  gradients = jax.grad(loss)(params)
  assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))


def test_float_rows_and_other_lengths_are_refused(folder):
  model = new(folder, length=4)
  with pytest.raises(ValueError, match=r"x has dtype float32: give token ids in int32"):
    model(jnp.zeros((2, 4)), train=False)
  with pytest.raises(ValueError, match=r"rows of shape \(4,\), got x of shape \(2, 5\)"):
    model(jnp.zeros((2, 5), jnp.int32), train=False)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"train_layers": 3}, r"train_layers=3: .* has 2 layers to train, 0 trains the head"),
    ({"train_layers": -1}, r"train_layers=-1: .* has 2 layers to train"),
    ({"pooling": "max"}, r"pooling must be one of mean, position_weighted, last_token, got 'max'"),
    ({"input_shape": (65,)}, r"texts of 65 tokens: .* has 64 positions, cut them"),
    ({"input_shape": (8, 8, 1)}, r"takes token ids \[l\], got input_shape=\(8, 8, 1\)"),
    ({"encoder": "MiniLM"}, r"there is no encoder 'MiniLM': give a folder"),
    ({"encoder": "some.gguf"}, r"some.gguf is a decoder in a GGUF file: give the folder of a bert"),
  ],
)
def test_what_cannot_be_is_refused(folder, options, message):
  given = {"encoder": str(folder), "input_shape": (4,), **options}
  with pytest.raises(ValueError, match=message) as error:
    make("fine_tuned_bert", rngs=nnx.Rngs(0), classes=3, **given)
  assert "\n" not in str(error.value)


def test_an_encoder_that_is_not_installed_says_what_installs_it(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"L6-v2 is not installed: `pip install --no-deps gt-all"):
    make("fine_tuned_bert", rngs=nnx.Rngs(0), input_shape=(4,), classes=3)


def test_weights_of_other_sizes_are_refused_when_they_are_read(folder, tmp_path):
  other = tiny_bert.write(tmp_path / "other")
  config = (other / "config.json").read_text().replace('"vocab_size": 204', '"vocab_size": 205')
  (other / "config.json").write_text(config)
  model = make("fine_tuned_bert", rngs=nnx.Rngs(0), input_shape=(4,), classes=3, encoder=str(other))
  with pytest.raises(ValueError, match=r"has shape \(204, 16\), config.json says \(205, 16\)"):
    pretrained(model)


def test_the_tokenizer_is_found_without_weights(folder):
  assert bert_tokenizer(str(folder)) == (folder / "tokenizer.json", 64)
  assert bert_tokenizer(str(folder), max_length=20)[1] == 20
  with pytest.raises(ValueError, match=r"max_length=65: .* takes 1 to 64 tokens"):
    bert_tokenizer(str(folder), max_length=65)


@packaged.needs(packaged.MINILM)
def test_minilm_begins_with_the_directions_of_its_embeddings(rng):
  tokens = texts(rng, count=4, length=8, vocabulary=30_000)
  features = new(packaged.MINILM, length=8)(jnp.asarray(tokens), train=False).features
  mask = tokens >= 0
  expected = open_encoder(packaged.MINILM).embed(np.where(mask, tokens, 0), mask)
  length = np.linalg.norm(features, axis=1, keepdims=True)
  assert (length > 1).all()
  # Six layers of float32 sums, in another program.
  np.testing.assert_allclose(features / length, expected, atol=1e-5)
