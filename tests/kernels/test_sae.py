"""The TopK autoencoder against NumPy in float64, and against itself on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jsel
from jsel.kernels import sae, sae_gradients
from jsel.kernels.sae import SAE, Codes

LATENTS, WIDTH, K = 24, 6, 3
OPTIONS = {"latents": 16, "k": 2, "steps": 6, "batch_size": 48, "dead_after": 2}


def make_sae(rng, *, normalize, latents=LATENTS, width=WIDTH):
  decoder = rng.standard_normal((latents, width))
  decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
  encoder = decoder + 0.3 * rng.standard_normal((latents, width))
  arrays = encoder, 0.1 * rng.standard_normal(latents), decoder, 0.1 * rng.standard_normal(width)
  return SAE(*(jnp.asarray(array, jnp.float32) for array in arrays), jnp.array(normalize))


def target_oracle(sae, x):
  x = np.asarray(x, np.float64)
  if not sae.normalize:
    return x
  return (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)


def dense_oracle(weights, target, k):
  """``[n, latents]``: all but the k largest are 0, and those are where negative."""
  encoder, encoder_bias, _, bias = (np.asarray(array, np.float64) for array in weights)
  every = (target - bias) @ encoder.T + encoder_bias
  order = np.argsort(-every, axis=1, kind="stable")[:, k:]
  np.put_along_axis(every, order, 0, axis=1)
  return np.maximum(every, 0)


def to_dense(codes, latents):
  dense = np.zeros((codes.index.shape[0], latents))
  np.put_along_axis(dense, np.asarray(codes.index), np.asarray(codes.value), axis=1)
  return dense


@functools.cache
def planted():
  """Rows made of two of 24 factors in 16 dimensions, and the factors."""
  rng = np.random.default_rng(0)
  factors = rng.standard_normal((24, 16))
  factors /= np.linalg.norm(factors, axis=1, keepdims=True)
  strength = rng.uniform(1, 2, (2048, 24)) * (rng.random((2048, 24)).argsort(1) < 2)
  return (strength @ factors).astype(np.float32), factors


@jax.jit
def train_planted(x, normalize, dead_after):
  options = {"latents": 48, "k": 2, "steps": 400, "batch_size": 128}
  switches = {"normalize": normalize, "dead_after": dead_after}
  return sae.fit(jax.random.key(0), x, optax.adam(3e-3), **options, **switches)


@functools.cache
def fit_on(devices):
  x = np.random.default_rng(2).standard_normal((1024, 6)).astype(np.float32)
  valid = np.arange(1024) < 700
  x[~valid] = 1e30
  train = lambda key, x, valid: sae.fit(key, x, optax.adam(1e-2), valid=valid, **OPTIONS)
  if devices:
    mesh = jsel.make_mesh(jax.devices()[:devices])
    train = lambda key, x, valid: jsel.shard(sae.fit, mesh)(
      key, x, optax.adam(1e-2), valid=valid, **OPTIONS
    )
  return jax.jit(train)(jax.random.key(3), x, valid)


@pytest.mark.parametrize("normalize", [False, True])
def test_encode_and_decode_match_float64(rng, normalize):
  weights = make_sae(rng, normalize=normalize)
  x = (3 + 2 * rng.standard_normal((700, WIDTH))).astype(np.float32)
  codes = sae.encode(weights, x, k=K)
  dense = dense_oracle(weights[:4], target_oracle(weights, x), K)
  # Values are of order 10 in float32; no two latents of this data are as close as that.
  np.testing.assert_allclose(to_dense(codes, LATENTS), dense, atol=2e-5)
  expected = dense @ np.asarray(weights.decoder, np.float64) + np.asarray(weights.bias)
  np.testing.assert_allclose(sae.decode(weights, codes), expected, atol=2e-5)


def test_codes_are_distinct_descending_and_at_most_k(rng):
  weights = make_sae(rng, normalize=True)
  codes = sae.encode(weights, rng.standard_normal((512, WIDTH)).astype(np.float32), k=12)
  index, value = np.asarray(codes.index), np.asarray(codes.value)
  assert index.shape == value.shape == (512, 12)
  assert (np.diff(np.sort(index, axis=1), axis=1) > 0).all()
  assert (np.diff(value, axis=1) <= 0).all()
  active = (value > 0).sum(1)
  assert active.max() > active.min()  # ReLU after top-k: some rows have fewer


def test_equal_latents_go_by_index():
  weights = SAE(jnp.ones((5, 2)), jnp.zeros(5), jnp.ones((5, 2)), jnp.zeros(2), jnp.array(False))
  assert sae.encode(weights, jnp.ones((3, 2)), k=3).index.tolist() == [[0, 1, 2]] * 3


def test_k_may_be_every_latent(rng):
  weights = make_sae(rng, normalize=False)
  x = rng.standard_normal((512, WIDTH)).astype(np.float32)
  dense = dense_oracle(weights[:4], target_oracle(weights, x), LATENTS)
  np.testing.assert_allclose(to_dense(sae.encode(weights, x, k=LATENTS), LATENTS), dense, atol=1e-5)


def test_bytes_are_cast_in_the_tile(rng):
  weights = make_sae(rng, normalize=True)
  x = rng.integers(0, 256, (512, WIDTH)).astype(np.uint8)
  got, expected = (sae.encode(weights, rows, k=K) for rows in (x, x.astype(np.float32)))
  np.testing.assert_array_equal(got.index, expected.index)
  np.testing.assert_array_equal(got.value, expected.value)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_codes_counts_and_measure_are_the_same_bits_on_any_device_count(rng, devices):
  weights = make_sae(rng, normalize=True)
  x = rng.standard_normal((1536, WIDTH)).astype(np.float32)
  valid = np.arange(1536) < 1300
  mesh = jsel.make_mesh(jax.devices()[:devices])

  def run(encode, decode, counts, unexplained):
    codes = encode(weights, x, k=K, valid=valid)
    measured = unexplained(weights, x, codes, valid=valid)
    return codes, decode(weights, codes), counts(codes, LATENTS, valid=valid), measured

  kernels = sae.encode, sae.decode, sae.factor_counts, sae.unexplained
  alone = jax.jit(lambda: run(*kernels))()
  sharded = jax.jit(lambda: run(*(jsel.shard(kernel, mesh) for kernel in kernels)))()
  jax.tree.map(np.testing.assert_array_equal, sharded, alone)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_fit_is_the_same_bits_on_any_device_count(devices):
  jax.tree.map(np.testing.assert_array_equal, fit_on(devices), fit_on(0))


def test_padding_changes_nothing(rng):
  weights = make_sae(rng, normalize=True)
  x = rng.standard_normal((1000, WIDTH)).astype(np.float32)
  padded = np.concatenate([x, np.full((24, WIDTH), np.nan, np.float32)])
  valid = np.arange(1024) < 1000
  got, expected = sae.encode(weights, padded, k=K, valid=valid), sae.encode(weights, x, k=K)
  np.testing.assert_array_equal(got.index[:1000], expected.index)
  # No mesh could split 1000 rows, so they go in other tiles: products of 6 terms in float32.
  np.testing.assert_allclose(got.value[:1000], expected.value, rtol=2e-6, atol=1e-6)
  assert not got.index[1000:].any()
  assert not got.value[1000:].any()
  other = np.concatenate([x, np.full((24, WIDTH), 7, np.float32)])
  again = sae.encode(weights, other, k=K, valid=valid)
  jax.tree.map(np.testing.assert_array_equal, got, again)
  alone = sae.Codes(got.index[:1000], got.value[:1000])
  np.testing.assert_array_equal(
    sae.unexplained(weights, padded, got, valid=valid), sae.unexplained(weights, x, alone)
  )


def test_fit_never_draws_padded_rows():
  result = fit_on(0)  # whose padded rows are constant, and so would have no weight if drawn
  short = np.random.default_rng(2).standard_normal((1024, 6)).astype(np.float32)[:700]
  other = np.random.default_rng(4).standard_normal((324, 6)).astype(np.float32)
  padded = np.concatenate([short, other])
  valid = np.arange(1024) < 700
  again = jax.jit(lambda key: sae.fit(key, padded, optax.adam(1e-2), valid=valid, **OPTIONS))
  jax.tree.map(np.testing.assert_array_equal, again(jax.random.key(3)), result)


def test_factor_counts_match_numpy(rng):
  index = rng.random((900, 10)).argsort(1)[:, :4].astype(np.int32)
  value = np.maximum(rng.standard_normal((900, 4)), 0).astype(np.float32)
  value[3] = np.nan
  valid = rng.random(900) < 0.7
  counts = sae.factor_counts(Codes(jnp.asarray(index), jnp.asarray(value)), 10, valid=valid)
  expected = [((index == j) & (value > 0) & valid[:, None]).sum() for j in range(10)]
  np.testing.assert_array_equal(counts, expected)
  assert counts.dtype == jnp.int32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_factor_counts_of_numpy_arrays_are_those_of_jax_arrays(dtype):
  value = np.array([[np.nan, 1], [1e-40, 2e-38]], np.float32).astype(dtype)
  codes = Codes(np.array([[0, 1], [2, 3]], np.int32), value)
  assert sae.factor_counts(codes, 4).tolist() == [0, 1, 0, 1]
  assert sae.factor_counts(jax.tree.map(jnp.asarray, codes), 4).tolist() == [0, 1, 0, 1]


def test_unexplained_matches_float64(rng):
  weights = make_sae(rng, normalize=True)
  x = (5 + rng.standard_normal((600, WIDTH))).astype(np.float32)
  valid = rng.random(600) < 0.8
  target = target_oracle(weights, x)
  output = dense_oracle(weights[:4], target, K) @ np.asarray(weights.decoder, np.float64)
  missed = ((target - output - np.asarray(weights.bias)) ** 2)[valid].sum()
  expected = missed / ((target - target[valid].mean(0)) ** 2)[valid].sum()
  got = sae.unexplained(weights, x, sae.encode(weights, x, k=K), valid=valid)
  np.testing.assert_allclose(got, expected, rtol=1e-4)  # a float32 normalisation about a mean of 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16_3x"])
@pytest.mark.parametrize("formulation", [sae_gradients.sparse, sae_gradients.dense])
def test_formulations_descend_as_autodiff_does(rng, formulation, precision):
  """What a CPU takes and what a matrix unit does, where both run, at a size of several tiles."""
  start = make_sae(rng, normalize=False, latents=96)
  target = jnp.asarray(rng.standard_normal((600, WIDTH)), jnp.float32)
  row_weight = jnp.where(jnp.arange(600) % 7 == 0, 0, jnp.asarray(rng.uniform(0, 1, 600), "f4"))

  def loss(weights):
    encoder, encoder_bias, decoder, bias = weights
    every = jnp.dot(target - bias, encoder.T, precision="highest") + encoder_bias
    floor = jax.lax.top_k(every, 3)[0].min(1, keepdims=True)
    code = jnp.where(every >= floor, jax.nn.relu(every), 0)
    error = target - jnp.dot(code, decoder, precision="highest") - bias
    return jnp.sum(row_weight * jnp.mean(error**2, axis=1)), code

  with jax.numpy_rank_promotion("allow"):
    (want, code), gradients = jax.value_and_grad(loss, has_aux=True)(start[:4])
  run = jax.jit(functools.partial(formulation, k=3, precision=precision))
  got = run(start[:4], target, row_weight)
  # Sums of 600 rows in another order; the split products leave out 2**-16 of each term.
  atol = {"float32": 2e-5, "bfloat16_3x": 2e-4}[precision]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=atol)
  close(got.loss, want)
  decoder = start.decoder
  along = jnp.sum(gradients[2] * decoder, axis=1, keepdims=True) * decoder
  across = (*gradients[:2], gradients[2] - along, gradients[3])
  jax.tree.map(close, got.gradients, across)
  np.testing.assert_array_equal(got.active, ((code > 0) & (row_weight > 0)[:, None]).any(0))
  assert not np.asarray(got.error)[::7].any()


@pytest.mark.parametrize(("k", "latents"), [(2, 24), (7, 24), (18, 24)])
def test_a_step_follows_the_gradient_of_the_loss(rng, k, latents):
  start = make_sae(rng, normalize=False, latents=latents)
  batch = rng.standard_normal((40, WIDTH)).astype(np.float32)
  step_size = 0.1
  state = sae.init(jax.random.key(0), jnp.zeros(WIDTH), latents, optax.sgd(step_size))
  state = state._replace(sae=start)
  after = jax.jit(lambda s, b: sae.update(s, b, optax.sgd(step_size), k=k, dead_after=None))(
    state, batch
  )

  weights = [np.asarray(array, np.float64) for array in start[:4]]
  target = batch.astype(np.float64)

  def loss(weights):
    output = dense_oracle(weights, target, k) @ weights[2] + weights[3]
    return (((target - output) ** 2).sum(1) / (target**2).sum(1)).mean()

  def slope(which, place, size=1e-6):
    moved = [[array.copy() for array in weights] for _ in range(2)]
    moved[0][which][place] += size
    moved[1][which][place] -= size
    return (loss(moved[0]) - loss(moved[1])) / (2 * size)

  np.testing.assert_allclose(after.loss, loss(weights), rtol=1e-5)
  expected = []
  for which, array in enumerate(weights):
    gradient = np.zeros_like(array)
    for place in np.ndindex(array.shape):
      gradient[place] = slope(which, place)
    if which == 2:
      gradient -= (gradient * array).sum(1, keepdims=True) * array
    expected.append(array - step_size * gradient)
  expected[2] /= np.linalg.norm(expected[2], axis=1, keepdims=True)
  for got, want in zip(after.sae[:4], expected, strict=True):
    np.testing.assert_allclose(got, want, atol=2e-6)  # float32, and differences of size 1e-6


def test_planted_factors_are_recovered():
  x, factors = planted()
  result = train_planted(x, False, 32)
  cosine = (factors @ np.asarray(result.sae.decoder).T).max(1)
  assert cosine.mean() > 0.9
  codes = sae.encode(result.sae, x, k=2)
  assert sae.unexplained(result.sae, x, codes) < 0.15
  # The two best directions of all, which is what two numbers a row buy without a dictionary.
  spectrum = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
  assert spectrum[2:].sum() / spectrum.sum() > 0.5
  assert result.loss[-1] < 0.2 * result.loss[0]
  # Over 16 entries in float32.
  np.testing.assert_allclose(np.linalg.norm(result.sae.decoder, axis=1), 1, atol=1e-6)


def test_dead_latents_are_revived():
  # Four strong directions: most of the latents lose everywhere.
  x = planted()[0] * np.where(np.arange(16) < 4, 5, 0.2).astype(np.float32)
  unused = []
  for dead_after in (2**31 - 1, 32):
    result = train_planted(x, True, dead_after)
    counts = sae.factor_counts(sae.encode(result.sae, x, k=2), 48)
    unused.append(int((counts == 0).sum()))
  assert unused[0] >= 16  # a third: there is something to revive
  assert unused[1] <= unused[0] // 2


def test_zero_constant_duplicate_and_broken_rows_give_no_nan(rng):
  x = np.zeros((512, WIDTH), np.float32)
  x[100:200] = 0.1
  x[200:300] = rng.standard_normal(WIDTH)
  x[300] = np.nan
  x[301, 2] = np.inf
  train = jax.jit(
    lambda key, x, normalize: sae.fit(key, x, optax.adam(1e-2), normalize=normalize, **OPTIONS)
  )
  for normalize in (False, True):
    result = train(jax.random.key(0), x, normalize)
    codes = sae.encode(result.sae, x, k=2)
    measured = sae.unexplained(result.sae, x, codes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result, codes, measured)))
    assert not codes.value[300:302].any()


def test_rows_without_variance_are_explained_or_not():
  weights = SAE(jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2), jnp.array(False))
  x = jnp.ones((4, 2))
  assert sae.unexplained(weights, x, sae.encode(weights, x, k=2)) == 0
  assert sae.unexplained(weights, x, sae.encode(weights, x, k=1)) == jnp.inf


def test_update_over_batches_learns_as_fit_does(rng):
  x, _ = planted()
  optimizer = optax.adam(3e-3)
  state = sae.init(jax.random.key(0), jnp.asarray(x.mean(0)), 48, optimizer, normalize=False)
  traces = []

  @jax.jit
  def step(state, batch):
    traces.append(None)
    return sae.update(state, batch, optimizer, k=2)

  losses = []
  for _ in range(100):
    state = step(state, x[rng.integers(0, 2048, 128)])
    losses.append(float(state.loss))
  assert len(traces) == 1
  assert state.step == 100
  assert losses[-1] < 0.6 * losses[0]


def test_a_new_state_can_be_donated_to_its_update(rng):
  optimizer = optax.adam(1e-3)
  x = jnp.asarray(rng.standard_normal((32, WIDTH)), jnp.float32)
  state = sae.init(jax.random.key(0), jnp.zeros(WIDTH), LATENTS, optimizer)
  step = jax.jit(lambda state, x: sae.update(state, x, optimizer, k=K), donate_argnums=0)
  for _ in range(2):
    state = step(state, x)
  assert int(state.step) == 2


def test_eager_is_jit(rng):
  weights = make_sae(rng, normalize=True)
  x = rng.standard_normal((512, WIDTH)).astype(np.float32)
  eager = sae.encode(weights, x, k=K)
  jitted = jax.jit(lambda weights, x: sae.encode(weights, x, k=K))(weights, x)
  np.testing.assert_array_equal(eager.index, jitted.index)
  np.testing.assert_array_equal(eager.value, jitted.value)
  optimizer = optax.sgd(0.1)
  state = sae.init(jax.random.key(1), jnp.zeros(WIDTH), 16, optimizer)
  step = lambda state: sae.update(state, x[:32], optimizer, k=2, dead_after=None)
  # Fused or not, float32 sums of 32 rows differ in the last bits.
  np.testing.assert_allclose(step(state).sae.encoder, jax.jit(step)(state).sae.encoder, atol=1e-6)


def test_eager_calls_share_a_program(rng):
  class Unhashable:
    __hash__ = None
    init = staticmethod(lambda weights: ())
    update = staticmethod(lambda gradients, state, weights=None: (gradients, state))

  x = rng.standard_normal((64, WIDTH)).astype(np.float32)
  optimizer, before = Unhashable(), sae._fit._cache_size()
  for number in range(3):
    sae.fit(jax.random.key(number), x, optimizer, **OPTIONS)
  assert sae._fit._cache_size() == before + 1


def test_learning_rates_may_be_traced(rng):
  x = rng.standard_normal((64, WIDTH)).astype(np.float32)
  fit = lambda rate: sae.fit(jax.random.key(0), x, optax.sgd(rate), **OPTIONS).loss
  rates = jnp.array([0.1, 0.3])
  each = jnp.stack([fit(rate) for rate in rates])
  # Products of a batch of matrices are added otherwise, to float32's last bits in each of 6 steps.
  np.testing.assert_allclose(jax.vmap(fit)(rates), each, rtol=1e-4)
  assert each[0, -1] != each[1, -1]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda w, x: sae.encode(w, x, k=0), "k = 0 of 24 latents"),
    (lambda w, x: sae.encode(w, x, k=25), "k = 25 of 24 latents"),
    (lambda w, x: sae.encode(w, x[:, :3], k=2), r"x must be \[n, 6\]"),
    (lambda w, x: sae.encode(w, x, k=2, valid=np.ones(3, bool)), r"valid has shape \(3,\)"),
    (lambda w, x: sae.decode(w, Codes(x, x[:, :2])), "codes must be index and value"),
    (lambda w, x: sae.fit(jax.random.key(0), x, optax.sgd(1), latents=4, k=5, steps=1,
                          batch_size=2), "k = 5 of 4 latents"),
    (lambda w, x: sae.fit(jax.random.key(0), x, optax.sgd(1), latents=4, k=2, steps=2**20,
                          batch_size=2**11), r"fewer than 2\*\*31"),
    (lambda w, x: sae.init(jax.random.key(0), x, 4, optax.sgd(1)), r"mean must be \[d\]"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(rng, call, message):
  with pytest.raises(ValueError, match=message):
    call(make_sae(rng, normalize=True), jnp.ones((8, WIDTH)))


def test_a_latent_is_never_chosen_twice():
  # One latent is positive, the others are -0.0 before the ReLU.
  encoder = jnp.eye(8, 32).T * -1
  weights = SAE(
    encoder.at[0].set(1), -jnp.zeros(32), jnp.ones((32, 8)), jnp.zeros(8), jnp.array(False)
  )
  optimizer = optax.sgd(0.0)
  state = sae.init(jax.random.key(0), jnp.zeros(8), 32, optimizer)._replace(sae=weights)
  after = jax.jit(lambda state, x: sae.update(state, x, optimizer, k=3))(state, jnp.ones((2, 8)))
  # The latent's value is 8, so that each entry misses by 7 of 1; twice it would be 15.
  assert after.loss == 49
