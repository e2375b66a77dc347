"""The decoder against NumPy in float64: states, logits and losses, whatever the padding or mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")
pytest.importorskip("gguf", reason="pip install 'jsel[gguf]'")

from jsel.models.llama import Llama, LlamaConfig
from jsel.models.llama_weights import load_llama
from jsel.models.token_loss import token_loss
from jsel.sharding import make_mesh, parameter_sharding, rows_sharding
from tests.models import decoders

TEXTS = [[3, 9, 9, 41], [7, 2], [1, 4, 8, 15, 16, 23, 42]]


def forward(model, tokens, mask, **options):
  """States and logits, compiled."""
  graph, state = nnx.split(model)

  @jax.jit
  def run(state, tokens, mask):
    model = nnx.merge(graph, state)
    hidden = model(tokens, mask, layers=(0, 1, 2, -1))
    return hidden, model.logits(hidden[-1]), token_loss(model, tokens, mask, **options)

  return run(state, jnp.asarray(tokens), jnp.asarray(mask))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
  ("kind", "tied"), [("llama", False), ("llama", True), ("qwen2", True), ("qwen3", False)]
)
def test_states_logits_and_losses_match_float64_on_either_side_of_padding(
  tmp_path, rng, kind, tied, side
):
  tensors = decoders.random_tensors(rng, kind, tied=tied)
  model = load_llama(decoders.write_folder(tmp_path / "m", tensors, kind))
  tokens, mask = decoders.padded(TEXTS, 9, side)
  # Logits of a few tokens at a time, and not as many in the last part.
  hidden, logits, loss = forward(model, tokens, mask, logit_rows=6)
  for row, text in enumerate(TEXTS):
    states, expected = decoders.oracle(tensors, text)
    # Three layers of sums of at most 24 float32 products.
    np.testing.assert_allclose(hidden[:, row, mask[row]], states, rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(logits[row, mask[row]], expected, rtol=1e-4, atol=5e-5)
    said = np.log(np.exp(expected).sum(1)) - expected[np.arange(len(text)), np.roll(text, -1)]
    np.testing.assert_allclose(loss[row, mask[row]][1:], said[:-1], rtol=1e-4, atol=5e-5)
    assert loss[row, mask[row]][0] == 0
  assert not loss[~mask].any()


def test_what_is_in_padding_changes_nothing(tmp_path, rng):
  folder = decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng))
  model = load_llama(folder)
  clean = forward(model, *decoders.padded(TEXTS, 9, fill=0))
  other = forward(model, *decoders.padded(TEXTS, 9, fill=33))
  mask = decoders.padded(TEXTS, 9)[1]
  for a, b in zip(clean[:2], other[:2], strict=True):
    np.testing.assert_array_equal(a[..., mask, :], b[..., mask, :])
  np.testing.assert_array_equal(clean[2], other[2])


def test_gradients_are_the_same_with_layers_worked_out_anew(tmp_path, rng):
  folder = decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng))
  tokens, mask = map(jnp.asarray, decoders.padded(TEXTS, 9))

  def gradient(remat):
    graph, state = nnx.split(load_llama(folder, remat=remat))
    loss = lambda state: token_loss(nnx.merge(graph, state), tokens, mask).sum()
    return jax.jit(jax.grad(loss))(state)

  kept, anew = gradient(False), gradient(True)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(kept))
  # The same formulas in programs of their own.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, kept, anew)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_do_not_go_back_into_frozen_layers_nor_words(tmp_path, rng, tied):
  tensors = decoders.random_tensors(rng, tied=tied)
  folder = decoders.write_folder(tmp_path / "m", tensors)
  tokens, mask = map(jnp.asarray, decoders.padded(TEXTS, 9))

  def gradient(frozen):
    graph, state = nnx.split(load_llama(folder, frozen=frozen))
    loss = lambda state: token_loss(nnx.merge(graph, state), tokens, mask).sum()
    return jax.jit(jax.value_and_grad(loss))(state)

  loss, whole = gradient(0)
  same, part = gradient(2)
  np.testing.assert_allclose(same, loss, rtol=1e-6)
  assert not part.words[...].any()
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for above, all_of_it in zip(*map(jax.tree.leaves, (part.blocks, whole.blocks)), strict=True):
    assert not above[:2].any()
    close(above[2:], all_of_it[2:])
  if not tied:
    close(part.head[...], whole.head[...])


def test_bfloat16_products_are_close_and_states_float32(tmp_path, rng):
  folder = decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng))
  exact, rounded = (
    forward(load_llama(folder, dtype=dtype), *decoders.padded(TEXTS, 9))
    for dtype in ("float32", "bfloat16")
  )
  assert rounded[0].dtype == rounded[1].dtype == jnp.float32
  mask = decoders.padded(TEXTS, 9)[1]
  length = lambda x: np.linalg.norm(x[:, mask])
  # 8 bits a factor, through three layers.
  assert 0 < length(rounded[0] - exact[0]) < 0.03 * length(exact[0])


def test_matrices_stored_in_bfloat16_are_those_rounded(tmp_path, rng):
  tensors = decoders.random_tensors(rng, "qwen2")
  folder = decoders.write_folder(tmp_path / "m", tensors, "qwen2")
  half = lambda x: x.astype(jnp.bfloat16).astype(np.float32) if x.ndim == 2 else x
  rounded = {name: half(x) for name, x in tensors.items()}
  model = load_llama(folder, stored="bfloat16")
  assert model.blocks.narrow.kernel[...].dtype == model.head[...].dtype == jnp.bfloat16
  assert model.norm.scale[...].dtype == jnp.float32
  expected = load_llama(decoders.write_folder(tmp_path / "r", rounded, "qwen2"))
  for a, b in zip(
    *(forward(m, *decoders.padded(TEXTS, 9)) for m in (model, expected)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_losses_are_the_same_with_parameters_and_texts_split_over_devices(tmp_path, rng):
  model = load_llama(decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng)))
  tokens, mask = decoders.padded([*TEXTS, *TEXTS, [5], [6, 7]], 9)
  alone = forward(model, tokens, mask)[2]
  mesh = make_mesh(fsdp=2)
  graph, state = nnx.split(model)
  rules = (("gate_and_widen.kernel", (None, None, "fsdp")), ("words", ("fsdp", None)))
  state = jax.device_put(state, parameter_sharding(state, mesh, rules))
  assert not state.words[...].sharding.is_fully_replicated
  place = lambda x: jax.device_put(x, rows_sharding(mesh))
  loss = jax.jit(lambda state, tokens, mask: token_loss(nnx.merge(graph, state), tokens, mask))
  # Sums over devices in another order.
  np.testing.assert_allclose(loss(state, place(tokens), place(mask)), alone, rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_go_together_are_refused(tmp_path, rng):
  config = LlamaConfig(50, 12, 3, 4, 2, 6, 20, 32, 1e-5, (1.0, 0.5, 0.1), tied=True)
  with pytest.raises(ValueError, match="4 heads of queries do not divide into 3 groups"):
    Llama(config._replace(groups=3), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="heads of 6 columns turn by half as many frequencies"):
    Llama(config._replace(frequencies=(1.0, 0.5)), rngs=nnx.Rngs(0))
  model = load_llama(decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng)))
  with pytest.raises(ValueError, match="texts of 33 tokens: the model has 32 positions"):
    model(*map(jnp.asarray, decoders.padded([[1] * 33], 33)))
  with pytest.raises(ValueError, match="there is no layer 4"):
    model(*map(jnp.asarray, decoders.padded(TEXTS, 9)), layers=(4,))


def test_logits_are_those_of_tunix(tmp_path, rng):
  loader = pytest.importorskip("tunix.models.llama3.params", reason="pip install google-tunix")
  from tunix.models.llama3.model import ModelConfig

  # Its Llama turns by this base, whatever its config says (0.1.7).
  folder = decoders.write_folder(
    tmp_path / "m", decoders.random_tensors(rng), rope_theta=1_000_000.0
  )
  sizes = {"num_layers": 3, "vocab_size": 50, "embed_dim": 12, "hidden_dim": 20, "num_heads": 4}
  sizes |= {"head_dim": 6, "num_kv_heads": 2, "rope_theta": 1_000_000, "norm_eps": 1e-5}
  peer = loader.create_model_from_safe_tensors(str(folder), ModelConfig(**sizes), dtype=jnp.float32)
  tokens, mask = map(jnp.asarray, decoders.padded([[1, 4, 8, 15, 16, 23, 42]], 7))
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    expected, _ = peer(tokens, jnp.arange(7)[None], None, jnp.tri(7, dtype=bool)[None])
  model = load_llama(folder)
  # Three layers of sums of at most 24 float32 products, on both sides.
  np.testing.assert_allclose(model.logits(model(tokens, mask)[0]), expected, rtol=1e-4, atol=1e-4)
