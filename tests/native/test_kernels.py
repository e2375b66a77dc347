"""The kernels in C++ against those of XLA that they stand in for.

Every other test of a kernel runs through them, too, where they are built; here both are called.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jsel import native
from jsel.kernels import (
  highest,
  kmeans,
  kmeans_seeding,
  moments,
  nearest,
  nth,
  projection,
  rotation,
  row_topk,
  sae_gradients,
  sae_step,
  segments,
  similarity,
  srht,
  topk,
  whitening,
)
from jsel.kernels import precision as products
from jsel.kernels.keys import to_keys
from jsel.kernels.reduce import rounded

KEY = jax.random.key(3)


def needs(name):
  if not native.available(name):
    pytest.skip(f"no kernel {name} for this processor, or none is built")


def test_they_are_built_where_there_is_a_compiler(monkeypatch):
  """A build that fails is no error of pip's: here it is one."""
  monkeypatch.delenv("JSEL_NATIVE", raising=False)
  if native._library() is None:
    pytest.skip("not built: no compiler, or another processor")
  assert native._library().jsel_native_version() == native.VERSION


def test_the_environment_turns_them_off(monkeypatch):
  monkeypatch.setenv("JSEL_NATIVE", "0")
  assert native._library() is None


def test_those_of_another_version_are_not_used(monkeypatch, caplog):
  monkeypatch.delenv("JSEL_NATIVE", raising=False)
  if native._library() is None:
    pytest.skip("not built")
  monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
  assert native._library() is None
  assert "pip install" in caplog.text


@pytest.mark.parametrize(
  ("n", "d", "dim"), [(1, 16, 16), (5, 17, 7), (70, 300, 200), (3, 5000, 64)]
)
def test_srht(rng, n, d, dim):
  needs("srht")
  size = srht._power_of_two(d)
  x = jnp.asarray(rng.standard_normal((n, d)), jnp.float32).at[0, 0].set(jnp.nan)
  column_signs = projection.signs(KEY, jnp.arange(d, dtype=jnp.int32), 1)[:, 0]
  coordinates = jnp.asarray(rng.permutation(size)[:dim], jnp.int32)
  got = srht._in_cache(x, column_signs, coordinates, size=size)
  want = srht._by_products(
    x, column_signs, coordinates, size=size, precision="float32", axis_name=None
  )
  # log2(size) additions of float32 each.
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.sqrt(size / dim))
  assert np.isnan(got[0]).all()


@pytest.mark.parametrize(
  ("n", "d", "dim"), [(1, 1, 1), (7, 5, 3), (97, 401, 65), (200, 1000, 130), (0, 9, 4)]
)
@pytest.mark.parametrize("precision", products.PARTS)
def test_rademacher(rng, n, d, dim, precision):
  needs("rademacher")
  x = jnp.asarray(rng.standard_normal((n, d + 3)), jnp.float32)
  total = jnp.asarray(rng.standard_normal((n, dim)), jnp.float32)
  words = projection._words(KEY, jnp.arange(d, dtype=jnp.uint32), dim)
  arrays = x, total, words, jnp.int32(2)
  want = projection._by_products(*arrays, precision="float32", axis_name=None)
  got = projection._by_sums(*arrays, parts=products.PARTS[precision])
  # d additions of float32, in another order; and what a processor with tiles leaves out of each.
  rounding = {"float32": 1e-6, "bfloat16_3x": 2**-16, "bfloat16": 2**-8}[precision]
  np.testing.assert_allclose(got, want, rtol=0, atol=rounding * np.sqrt(d) * 6)


@pytest.mark.parametrize(
  ("n", "d", "k"), [(1, 1, 1), (100, 3, 5), (61, 384, 65), (300, 17, 333), (200, 300, 40)]
)
@pytest.mark.parametrize("exact", [True, False])
def test_nearest(rng, n, d, k, exact):
  needs("nearest")
  x = jnp.asarray(rng.standard_normal((n, d)) + 3, jnp.float32)
  centers = jnp.asarray(rng.standard_normal((k, d)) + 3, jnp.float32)
  centers = centers.at[k // 2].set(centers[0])  # a tie, to the first
  centers = centers.at[k - 1].set(jnp.nan) if k > 1 else centers
  find = functools.partial(nearest.nearest, axis_name=None)
  usable = jnp.arange(n) != 1
  precision = "float32" if exact else "bfloat16"
  got = find(x, centers, usable, precision=precision)
  shift, shifted, half_norm = jnp.zeros(d), jnp.nan_to_num(centers), 0.5 * (centers**2).sum(1)
  half_norm = jnp.where(jnp.isfinite(half_norm), half_norm, jnp.inf)
  want = nearest._tiled(x, usable, shift, shifted, half_norm, precision="float32", axis_name=None)
  if exact:
    np.testing.assert_array_equal(got, want)
  else:
    off = lambda label: ((x - centers[label]) ** 2).sum(1)[usable]
    # What bfloat16 takes of the products, 2**-8 of the lengths.
    assert (off(got) <= off(want) + 2**-7 * (d + 1) * 4).all()
  assert got[1] == -1 if n > 1 else True


def test_nearest_where_all_centers_are_in_doubt(rng):
  """Centers that bfloat16 cannot tell apart, and rows on them."""
  needs("nearest")
  centers = 1 + 1e-4 * jnp.asarray(rng.standard_normal((100, 8)), jnp.float32)
  x = centers[jnp.asarray(rng.integers(0, 100, 500))]
  labels, distance2 = kmeans.assign(x, centers)
  assert (np.asarray(distance2) < 1e-12).all()
  np.testing.assert_array_equal(centers[labels], x)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (300, 65), (9000, 130)])
@pytest.mark.parametrize("backward", [0, 1])
def test_closer(rng, n, d, backward):
  needs("closer")
  x = jnp.asarray(rng.standard_normal((n, d)), jnp.float32)
  center = jnp.asarray(rng.standard_normal(d), jnp.float32)
  before = jnp.asarray(rng.uniform(0, 4 * d, n), jnp.float32)
  arrays = x, center, before, jnp.int32(backward)
  want = kmeans_seeding._closer_by_tiles(*arrays, axis_name=None)
  # d squares in another order.
  np.testing.assert_allclose(kmeans_seeding._closer_at_once(*arrays), want, rtol=1e-5)
  far = kmeans_seeding._closer_at_once(x, center + jnp.inf, before, jnp.int32(backward))
  np.testing.assert_array_equal(far, before)
  # XLA's minimum on CPU may pass over a NaN; rows with one are drawn by neither.
  got = kmeans_seeding._closer_at_once(x.at[n // 2, 0].set(jnp.nan), *arrays[1:])
  assert np.flatnonzero(np.isnan(got)).tolist() == [n // 2]


@pytest.mark.parametrize(("n", "d", "count"), [(1, 1, 1), (300, 65, 7), (5000, 130, 40)])
def test_segment_sum(rng, n, d, count):
  needs("segment_sum")
  x = jnp.asarray(rng.standard_normal((n, d)) * 10.0 ** rng.integers(-9, 9, (n, d)), jnp.float32)
  labels = jnp.asarray(rng.integers(-2, count + 2, n), jnp.int32)
  weights = jnp.asarray(rng.uniform(0, 2, n), jnp.float32)
  exponent = segments.exponents(x, weights, (labels >= 0) & (labels < count))
  arrays = x, labels, weights, segments._scale(exponent)
  want = segments._limbs_by_tiles(*arrays, count=count, axis_name=None)
  jax.tree.map(
    np.testing.assert_array_equal, segments._limbs_by_columns(*arrays, count=count), want
  )


@pytest.mark.parametrize("n", [1, 40, 3000, 70_000, 200_000])
@pytest.mark.parametrize("spread", [2, 50, 2**31 - 1])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_highest(rng, n, spread, share):
  needs("highest")
  keys = rng.integers(-spread, spread, n).astype(np.int32)
  keys[rng.random(n) < 0.2] = np.iinfo(np.int32).min
  k = max(1, round(share * n))
  top, ids = highest._at_once(jnp.asarray(keys), k)
  order = np.lexsort((np.arange(n), -keys.astype(np.int64)))[:k]
  order = np.sort(order[keys[order] != np.iinfo(np.int32).min])
  np.testing.assert_array_equal(ids[: len(order)], order)
  np.testing.assert_array_equal(top[: len(order)], keys[order])
  assert (np.asarray(ids)[len(order) :] == -1).all()
  mask = highest._mask_at_once(jnp.asarray(keys), jnp.int32(k))
  np.testing.assert_array_equal(np.flatnonzero(mask), order)
  for none in (0, -3):
    assert not np.asarray(highest._mask_at_once(jnp.asarray(keys), jnp.int32(none))).any()


def test_highest_where_the_sample_misleads():
  """All high keys stand where no sample is taken, or all where it is."""
  needs("highest")
  n = 2**17
  for keys in (np.arange(n) % 8 > 3, np.arange(n) % 8 == 0, np.zeros(n)):
    keys = (1000 * keys + np.arange(n) % 3).astype(np.int32)
    top, ids = highest._at_once(jnp.asarray(keys), 3000)
    order = np.sort(np.lexsort((np.arange(n), -keys))[:3000])
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(top, keys[order])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("some_valid", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (50, 9), (3000, 3000), (300_000, 200)])
def test_highest_of_scores(rng, n, k, used, some_valid):
  """Bit by bit the keys that XLA works out: with NaN, both zeros, infinities and subnormals."""
  needs("highest_scores")
  odd = [np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-40]
  scores = np.where(rng.random(n) < 0.3, rng.choice(odd, n), rng.standard_normal(n))
  scores = jnp.asarray(scores, jnp.float32)
  usage = jnp.asarray(rng.integers(0, 9, n), jnp.int32) if used else jnp.zeros(n, jnp.int32)
  valid = jnp.asarray(rng.random(n) < 0.7) if some_valid else None
  penalty = jnp.float32(0.1)
  got = highest.at_once_of_scores(scores, usage if used else None, penalty, valid, k)()
  less = lambda scores: scores - rounded(penalty * usage.astype(jnp.float32)) if used else scores
  want = highest._at_once(jax.jit(lambda scores: to_keys(less(scores), valid))(scores), k)
  jax.tree.map(np.testing.assert_array_equal, tuple(got), tuple(want))


@pytest.mark.parametrize("precision", products.PARTS)
@pytest.mark.parametrize(
  ("n", "d", "q", "count", "tile"),
  [(1, 1, 1, 1, 1), (700, 33, 40, 9, 100), (5000, 96, 3, 1000, 5000), (2000, 7, 700, 2000, 64)],
)
def test_best_matches(rng, n, d, q, count, tile, precision):
  """Of whole numbers, whose products are exact, with many ties, as XLA's."""
  needs("best_matches")
  x = jnp.asarray(rng.integers(-3, 4, (n, d)), jnp.float32).at[n // 2, 0].set(jnp.nan)
  queries = jnp.asarray(rng.integers(-3, 4, (q, d)), jnp.float32)
  arrays = x, queries, jnp.asarray(rng.random(n) < 0.8)
  options = {"held": count, "tile": tile, "precision": precision}
  got = similarity._best_at_once(*arrays, **options)
  want = jax.jit(functools.partial(similarity._best_by_tiles, **options, axis_name=None))(*arrays)
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("where", ["rows", "queries"])
def test_best_matches_with_infinities(rng, where):
  needs("best_matches")
  x = jnp.asarray(rng.integers(1, 4, (300, 40)), jnp.float32)
  queries = jnp.asarray(rng.integers(1, 4, (20, 40)), jnp.float32)
  if where == "rows":
    x = x.at[7, 3].set(jnp.inf).at[9, 0].set(-jnp.inf).at[11, 0].set(3.4e38)
  else:
    queries = queries.at[2, 3].set(-jnp.inf)
  options = {"held": 300, "tile": 100, "precision": "float32"}
  arrays = x, queries, jnp.ones(300, bool)
  got = similarity._best_at_once(*arrays, **options)
  want = jax.jit(functools.partial(similarity._best_by_tiles, **options, axis_name=None))(*arrays)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_best_matches_of_rows_that_get_ever_better(rng):
  """Every row is among the best of all queries when it comes."""
  needs("best_matches")
  n, count = 40_000, 50
  x = jnp.arange(n, dtype=jnp.float32)[:, None]
  queries = jnp.asarray(rng.integers(1, 4, (20, 1)), jnp.float32)
  got = similarity.best_matches(x, queries, count)
  np.testing.assert_array_equal(got.indices, np.tile(np.arange(n)[: -count - 1 : -1], (20, 1)))
  np.testing.assert_array_equal(got.values, np.asarray(queries) * np.asarray(got.indices))


@pytest.mark.parametrize(
  ("n", "width", "k"), [(1, 1, 1), (7, 20, 20), (50, 1000, 3), (33, 4096, 32), (4, 4100, 900)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_row_top_k(rng, n, width, k, ties):
  needs("row_top_k")
  x = rng.integers(-3, 3, (n, width)) if ties else rng.standard_normal((n, width))
  x = x.astype(np.float32)
  x[:, -1] = -np.inf
  values, columns = row_topk._by_bound(jnp.asarray(x), k=k)
  want = jax.lax.top_k(x, k)
  np.testing.assert_array_equal(values, want[0])
  np.testing.assert_array_equal(columns, want[1])


@pytest.mark.parametrize(("b", "d", "latents", "k"), [(1, 3, 5, 2), (70, 130, 300, 9)])
def test_sae(rng, b, d, latents, k):
  needs("sae_codes")
  x, slope = (jnp.asarray(rng.standard_normal((b, d)), jnp.float32) for _ in range(2))
  encoder, decoder = (jnp.asarray(rng.standard_normal((latents, d)), jnp.float32) for _ in range(2))
  decoder = decoder / jnp.linalg.norm(decoder, axis=1, keepdims=True)
  bias = jnp.asarray(rng.standard_normal(latents), jnp.float32)
  want = sae_gradients._highest(x, encoder, bias, k=k, precision="float32")
  code, index = sae_gradients._highest_at_once(x, encoder, bias, k=k, narrow=False)
  np.testing.assert_array_equal(index, want[1])
  # Sums of d products, in another order.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5 * d)
  close(code, want[0])
  rough, _ = sae_gradients._highest_at_once(x, encoder, bias, k=k, narrow=True)
  np.testing.assert_allclose(rough, code, atol=2**-6 * np.sqrt(d))
  code = jax.nn.relu(code)
  close(
    sae_gradients._decode_at_once(code, index, decoder), sae_gradients._decode(code, index, decoder)
  )
  arrays = code, index, slope, x, decoder
  got, want = sae_gradients._gradients_at_once(*arrays), sae_gradients._gradients(*arrays)
  jax.tree.map(close, got, want)
  np.testing.assert_array_equal(got[3], want[3])


@pytest.mark.parametrize("shape", [(1, 1), (70, 130)])
def test_unit_rows(rng, shape):
  needs("unit_rows")
  x = jnp.asarray(rng.standard_normal(shape), jnp.float32).at[shape[0] // 2].set(0)
  x = x.at[-1, -1].set(jnp.nan)
  want = sae_step._unit_by_sums(x)
  # A sum of so many squares in another order, and a division.
  np.testing.assert_allclose(sae_step._unit_in_place(x), want, rtol=1e-6)
  assert np.isnan(want[-1]).all()


def test_derivatives_are_those_of_xla(rng):
  needs("srht")
  x = jnp.asarray(rng.standard_normal((6, 40)), jnp.float32)
  for project in (srht.srht, projection.rademacher):
    loss = lambda x: (project(KEY, x, 16) ** 2).sum()  # noqa: B023
    step = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    along = (jax.grad(loss)(x) * step).sum()
    # Quadratic, so that central differences are exact but for rounding.
    np.testing.assert_allclose(along, (loss(x + step) - loss(x - step)) / 2, rtol=1e-4)


def test_vmap(rng):
  needs("srht")
  x = jnp.asarray(rng.standard_normal((3, 8, 40)), jnp.float32)
  got = jax.vmap(lambda x: srht.srht(KEY, x, 16))(x)
  for batch, one in zip(got, x, strict=True):
    np.testing.assert_allclose(batch, srht.srht(KEY, one, 16), atol=1e-6)
  scores = jnp.asarray(rng.integers(0, 9, (4, 300)), jnp.float32)
  ids = jax.vmap(lambda s: topk.top_k(s, 10).indices)(scores)
  for row, one in zip(ids, scores, strict=True):
    np.testing.assert_array_equal(row, topk.top_k(one, 10).indices)


def test_inside_of_shard_map(rng):
  """Arrays that differ between devices beside such as do not."""
  needs("nearest")
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  x = rng.standard_normal((1024, 20)).astype(np.float32)
  centers = rng.standard_normal((10, 20)).astype(np.float32)
  find = jax.shard_map(
    lambda x, c: kmeans.assign(x, c, axis_name="data")[0],
    mesh=mesh,
    in_specs=(P("data"), P()),
    out_specs=P("data"),
  )
  np.testing.assert_array_equal(jax.jit(find)(x, centers), kmeans.assign(x, centers)[0])


# What a precision may take of a term.
OFF = {"float32": 2e-6, "bfloat16_3x": 2**-15, "bfloat16": 2**-7}


@pytest.mark.parametrize("precision", products.PARTS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (40, 70), (700, 5), (2500, 131), (17_001, 9)])
def test_gram(rng, n, d, precision):
  """Rows that count now and then, or none of many in turn, and a column that is constant."""
  needs("gram")
  x = np.asarray(rng.standard_normal((n, d)) + 5, np.float32)
  x[:, d // 2] = 1e4 if d > 1 else x[:, 0]
  valid = rng.random(n) < 0.8
  valid[n // 3 : n // 2] = False
  arrays = jnp.asarray(x), jnp.asarray(valid), jnp.int32(valid.sum())
  mean, got = moments._at_once(*arrays, precision=precision)
  wide = x.astype(np.float64)[valid]
  middle = wide.mean(0) if len(wide) else np.zeros(d)
  np.testing.assert_allclose(mean, middle, rtol=1e-7)
  length = np.sqrt(((wide - middle) ** 2).sum(0))
  assert (
    np.abs(got - (wide - middle).T @ (wide - middle)) <= OFF[precision] * np.outer(length, length)
  ).all()
  np.testing.assert_array_equal(got, got.T)


def test_gram_of_rows_whose_mean_moves(rng):
  """Far more than they differ by: each has a mean of its own neighbours."""
  needs("gram")
  x = rng.standard_normal((5000, 40)).astype(np.float32)
  x[2345:] += 1000
  arrays = jnp.asarray(x), jnp.ones(5000, bool), jnp.int32(5000)
  mean, got = moments._at_once(*arrays, precision="float32")
  wide = x.astype(np.float64) - x.mean(0, dtype=np.float64)
  # Rounded relative to the first row, which is 1,000 away.
  np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=3e-7)
  np.testing.assert_allclose(got, wide.T @ wide, rtol=1e-6)


@pytest.mark.parametrize("precision", products.PARTS)
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (70, 131, 65), (130, 40, 7)])
def test_project(rng, n, d, k, precision):
  needs("project")
  x = jnp.asarray(rng.standard_normal((n, d)), jnp.float32).at[0, 0].set(jnp.nan)
  mean, scale = (jnp.asarray(rng.standard_normal(size), jnp.float32) for size in (d, k))
  components = jnp.asarray(rng.standard_normal((k, d)), jnp.float32)
  got = whitening._project_at_once(x, mean, components, scale, precision=precision)
  options = {"precision": "float32", "axis_name": None}
  want = whitening._project_by_tiles(x, mean, components, scale, **options)
  length = jnp.outer(jnp.linalg.norm(x - mean[None], axis=1), jnp.linalg.norm(components, axis=1))
  assert (jnp.abs(got - want)[1:] <= (OFF[precision] * length * jnp.abs(scale)[None])[1:]).all()
  assert np.isnan(got[0]).all()


def test_a_covariance_has_the_derivative_of_xla_s(rng):
  needs("gram")
  x = jnp.asarray(rng.standard_normal((30, 4)), jnp.float32)

  def loss(x):
    return (moments.finish(moments.update(moments.init(4, covariance=True), x))[1] ** 2).sum()

  step = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  along = (jax.grad(loss)(x) * step).sum()
  # A quartic, by differences that are good to the square of their stride.
  near = (loss(x + 1e-2 * step) - loss(x - 1e-2 * step)) / 2e-2
  np.testing.assert_allclose(along, near, rtol=5e-3)


@pytest.mark.parametrize("n", [1, 130, 512 * 118, 2_000_000])
@pytest.mark.parametrize("leaves", [1, 4, 512])
def test_count_tiles(rng, n, leaves):
  needs("count_tiles")
  mask = jnp.asarray(rng.random(-(-n // leaves) * leaves) < 0.3)
  jax.tree.map(np.testing.assert_array_equal, nth._cut(mask, leaves), nth._by_words(mask, leaves))


def debts(rng, n, kind):
  """Some that the sample knows of, some that it does not, and some where hardly a row is near."""
  flat = np.zeros(n, np.int32)
  if kind == "far apart":
    return rng.integers(-(2**29), 2**29, n).astype(np.int32)
  if kind == "between the samples":
    flat[n // 3 : n // 3 + 9] = 2**25
    return flat - (np.arange(n) % 64 >= 16).astype(np.int32) * -(2**24)
  return flat


@pytest.mark.parametrize("n", [1, 17, 255, 70_001, 400_000])
@pytest.mark.parametrize("kind", ["all the same", "far apart", "between the samples"])
def test_rotate(rng, n, kind):
  needs("rotate")
  share = jnp.asarray(rng.integers(0, 2**20, n), jnp.int32)
  taken = jnp.asarray(rng.integers(0, 9, n), jnp.int32)
  valid = jnp.asarray(rng.random(n) < 0.95)
  arrays = KEY, jnp.asarray(debts(rng, n, kind)), share, taken, valid
  for k in {0, 1, min(n, 128), n // 2, n}:
    got = jax.jit(functools.partial(rotation._at_once, k=k))(*arrays)
    want = jax.jit(functools.partial(rotation._in_parts, k=k, axis_name=None))(*arrays)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_memory_is_counted_and_given_back(rng):
  needs("srht")
  x = jnp.asarray(rng.standard_normal((40, 3000)), jnp.float32)
  native.most_held()
  srht.srht(KEY, x, 16).block_until_ready()
  # A row of 4,096 floats a thread, of the two or more that took part.
  assert native.most_held() in range(2**14, 2**14 * 33)
  for _ in range(100):  # a thread gives its memory back after its last row is done
    if not native.most_held():
      return
    time.sleep(0.01)
  raise AssertionError("memory is not given back")


def test_many_at_once_do_not_wait_for_one_another(rng):
  """More calls than threads, each of which asks for all of them."""
  needs("highest")
  keys = jnp.asarray(rng.integers(0, 2**30, (8, 100_000)), jnp.int32)

  @jax.jit
  def several(keys):
    return [topk.top_k(row, 1000).indices for row in keys]

  want = [np.asarray(topk.top_k(row, 1000).indices) for row in keys]
  for _ in range(20):
    for got, ids in zip(several(keys), want, strict=True):
      np.testing.assert_array_equal(got, ids)
