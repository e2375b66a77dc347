"""A keyed permutation: one to one, its own inverse's inverse, and as random as a shuffle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.kernels.permutation import inverse, inverse_range, permute

SIZES = [1, 2, 3, 5, 7, 16, 64, 511, 512, 513, 60_000]
jitted, jitted_inverse = jax.jit(permute), jax.jit(inverse)


def chi_square(counts, expected):
  return ((counts - expected) ** 2 / expected).sum()


def limit(degrees):
  """Passed with probability 1e-3 (Wilson and Hilferty's approximation)."""
  return degrees * (1 - 2 / (9 * degrees) + 3.09 * np.sqrt(2 / (9 * degrees))) ** 3


def permutations(n, count, width=None):
  """The first ``width`` images under ``count`` keys."""
  keys = jax.random.split(jax.random.key(7), count)
  index = jnp.arange(n if width is None else width, dtype=jnp.int32)
  return np.asarray(jax.jit(jax.vmap(lambda key: permute(key, index, n)))(keys))


@pytest.mark.parametrize("n", SIZES)
def test_one_to_one_with_an_inverse(key, n):
  index = jnp.arange(n, dtype=jnp.int32)
  image = jitted(key, index, n)
  assert image.dtype == jnp.int32
  assert (np.sort(image) == np.arange(n)).all()
  assert (jitted_inverse(key, image, n) == index).all()
  assert (jitted(key, jitted_inverse(key, index, n), n) == index).all()


@pytest.mark.parametrize("n", [*SIZES, 65, 80, 1000, 46340])
def test_a_range_is_the_same_positions_one_by_one(n):
  whole = jax.jit(lambda key: inverse_range(key, 0, n, n))
  some = jax.jit(lambda key, start: inverse_range(key, start, 40, n))
  index = jnp.arange(n, dtype=jnp.int32)
  for seed in range(20):
    key = jax.random.key(seed)
    want = np.asarray(jitted_inverse(key, index, n))
    np.testing.assert_array_equal(whole(key), want)
    for start in (0, n // 2, n - 7):  # past the end, too, as padding is
      got = np.asarray(some(key, jnp.int32(max(start, 0))))
      inside = want[max(start, 0) :][:40]
      np.testing.assert_array_equal(got[: len(inside)], inside)
      assert ((got >= 0) & (got < n)).all()


@pytest.mark.parametrize("n", [2**31 - 1, 2**31 - 512, 46340**2 - 1, 46340**2, 46340**2 + 1])
def test_the_largest_sizes(key, n):
  near_the_end = jnp.arange(1000, dtype=jnp.int32) + jnp.int32(n - 1000)
  image = np.asarray(jitted(key, near_the_end, n))
  assert image.min() >= 0
  assert image.max() < n
  assert len(set(image.tolist())) == 1000
  assert (jitted_inverse(key, jnp.asarray(image), n) == near_the_end).all()


@pytest.mark.parametrize("n", [2, 4, 5, 6])
def test_every_permutation_of_a_few_is_as_likely(n):
  images = permutations(n, 24_000)
  _, counts = np.unique(images @ n ** np.arange(n), return_counts=True)
  every = int(np.prod(np.arange(1, n + 1)))
  assert len(counts) == every
  assert chi_square(counts, 24_000 / every) < limit(every - 1)


@pytest.mark.parametrize("n", [7, 25])
def test_even_and_odd_permutations_are_as_likely(n):
  # Rounds on two odd moduli would make even permutations only.
  images = permutations(n, 2000)
  inversions = sum((images[:, :i] > images[:, i : i + 1]).sum(1) for i in range(n))
  odd = (inversions % 2).mean()
  assert abs(odd - 0.5) < 3.3 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize("n", [7, 63, 64])
def test_two_positions_go_anywhere(n):
  images = permutations(n, 60_000, width=2)
  counts = np.bincount(images @ np.array([n, 1]), minlength=n * n).reshape(n, n)
  assert (np.diag(counts) == 0).all()
  others = counts[~np.eye(n, dtype=bool)]
  assert chi_square(others, 60_000 / len(others)) < limit(len(others) - 1)


@pytest.mark.parametrize("n", [512, 60_000])
def test_neighbours_are_unrelated(key, n):
  image = np.asarray(jitted(key, jnp.arange(n, dtype=jnp.int32), n)).astype(np.float64)
  for lag in (1, 2, int(np.sqrt(n)), int(np.sqrt(n)) + 1):
    assert abs(np.corrcoef(image[lag:], image[:-lag])[0, 1]) < 3.5 / np.sqrt(n)
  assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 3.5 / np.sqrt(n)
  assert (image == np.arange(n)).sum() < 10  # 1 expected


def test_keys_give_unrelated_permutations(key):
  index = jnp.arange(1000, dtype=jnp.int32)
  a, b = (np.asarray(jitted(jax.random.key(seed), index, 1000)) for seed in (0, 1))
  assert (a == b).sum() < 10  # 1 expected
  assert (a == np.asarray(permute(key, index, 1000))).all()  # jit as eager


def test_a_dynamic_size_traces_once(key):
  traces = []

  @jax.jit
  def image(index, n):
    traces.append(n)
    return permute(key, index, n)

  for n in (5, 100, 60_000):
    index = jnp.arange(5, dtype=jnp.int32)
    assert (image(index, jnp.int32(n)) == permute(key, index, n)).all()
  assert len(traces) == 1


def test_positions_outside_end_and_disturb_nobody(key):
  index = jnp.array([-5, 0, 1, 2, 3, 10, 2**31 - 1], jnp.int32)
  image = permute(key, index, 4)
  assert (np.sort(image[1:5]) == np.arange(4)).all()
  assert ((image >= 0) & (image < 4)).all()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_same_on_any_device_count(key, devices):
  index = np.arange(512, dtype=np.int32)
  mesh = jsel.make_mesh(jax.devices()[:devices])
  local = jax.shard_map(
    lambda key, index: permute(key, index, 500),
    mesh=mesh,
    in_specs=(P(), P("data")),
    out_specs=P("data"),
  )
  assert (jax.jit(local)(key, index) == jitted(key, index, 500)).all()


def test_what_is_no_domain_is_refused(key):
  index = jnp.arange(3, dtype=jnp.int32)
  with pytest.raises(ValueError, match="got n = 0"):
    permute(key, index, 0)
  with pytest.raises(ValueError, match="got n = 2147483648"):
    inverse(key, index, 2**31)
  with pytest.raises(ValueError, match="must be int32, got uint32"):
    permute(key, index.astype(jnp.uint32), 3)
