"""Generation with a cache against NumPy in float64 and against the model without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")
pytest.importorskip("gguf", reason="pip install 'jsel[gguf]'")

from jsel.models.generate import generate
from jsel.models.llama_weights import load_llama
from tests.models import decoders

TEXTS = [[3, 9, 9, 41], [7, 2], [1, 4, 8, 15, 16, 23, 42], []]


def run(model, tokens, mask, **options):
  graph, state = nnx.split(model)
  call = jax.jit(lambda state, *x: generate(nnx.merge(graph, state), *x, **options))
  return call(state, jnp.asarray(tokens), jnp.asarray(mask))


def greedy(tensors, text, count):
  """The continuation by the oracle, which reads everything anew for each token."""
  said = list(text)
  for _ in range(count):
    said.append(int(decoders.oracle(tensors, said)[1][-1].argmax()))
  return said[len(text) :]


@pytest.fixture
def tensors(rng):
  return decoders.random_tensors(rng)


@pytest.fixture
def model(tmp_path, tensors):
  return load_llama(decoders.write_folder(tmp_path / "m", tensors))


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_those_of_float64_on_either_side_of_padding(model, tensors, side):
  said = run(model, *decoders.padded(TEXTS, 9, side), count=8, stop=())
  expected = [greedy(tensors, text, 8) for text in TEXTS[:3]]
  assert len({token for text in expected for token in text}) > 3  # not one word over and over
  assert said.tokens[:3].tolist() == expected
  assert said.mask[:3].all()
  assert not said.mask[3].any()  # nothing follows no text
  assert not said.tokens[3].any()


def test_a_text_ends_before_the_token_that_stops_it_and_others_go_on(model, tensors):
  expected = [greedy(tensors, text, 8) for text in TEXTS[:3]]
  stop = expected[0][3]
  said = run(model, *decoders.padded(TEXTS, 9), count=8, stop=(stop, 48))
  for row, tokens in enumerate(expected):
    ends = [tokens.index(token) for token in (stop, 48) if token in tokens]
    length = min(ends, default=8)
    assert said.mask[row].tolist() == [True] * length + [False] * (8 - length)
    assert said.tokens[row].tolist() == tokens[:length] + [0] * (8 - length)


def test_states_with_a_cache_are_those_without(model, tensors):
  tokens, mask = map(jnp.asarray, decoders.padded(TEXTS[:3], 9, "left"))
  _, cache = model.read(tokens, mask)
  new = jnp.asarray([5, 6, 7], jnp.int32)
  state, _, _ = model.read_next(new, mask.sum(1, dtype=jnp.int32), [cache])
  for row, text in enumerate(TEXTS[:3]):
    expected = decoders.oracle(tensors, [*text, int(new[row])])[0][-1, -1]
    # Three layers of sums of at most 24 float32 products.
    np.testing.assert_allclose(state[row], expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("count", [0, 24])
def test_counts_that_do_not_fit_are_refused(model, count):
  with pytest.raises(ValueError, match=f"count={count} after texts of 9 tokens: the model has 32"):
    run(model, *decoders.padded(TEXTS, 9), count=count, stop=())
