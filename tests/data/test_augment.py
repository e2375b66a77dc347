"""augment against a loop of NumPy slices, and what it promises of ids, batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.data.augment import augment
from jsel.sharding import replicated, rows_sharding

run = jax.jit(augment, static_argnames=("flip", "crop"))


@pytest.fixture
def images(rng):
  return rng.integers(1, 256, (64, 6, 5, 3)).astype(np.uint8)  # no 0: padding shows


def outcomes(image, *, flip, crop):
  """All that can become of ``image``, by (flipped, top, left)."""
  height, width, _ = image.shape
  found = {}
  for flipped in (False, True) if flip else (False,):
    padded = np.pad(image[:, ::-1] if flipped else image, ((crop, crop), (crop, crop), (0, 0)))
    for top in range(2 * crop + 1):
      for left in range(2 * crop + 1):
        window = padded[top : top + height, left : left + width]
        found[window.tobytes()] = (flipped, top, left)
  return found


@pytest.mark.parametrize(("flip", "crop"), [(True, 0), (False, 2), (True, 2)])
def test_every_image_is_one_of_the_possible_outcomes(key, images, flip, crop):
  got = np.asarray(run(key, images, jnp.arange(64), flip=flip, crop=crop))
  assert got.dtype == np.uint8
  seen = {
    outcomes(image, flip=flip, crop=crop)[row.tobytes()]
    for image, row in zip(images, got, strict=True)
  }
  assert len(seen) > (1 if crop == 0 else 10)


def test_outcomes_are_equally_likely(key, rng):
  n = 10_000
  image = rng.integers(1, 256, (3, 3, 1)).astype(np.uint8)
  got = np.asarray(run(key, np.tile(image, (n, 1, 1, 1)), jnp.arange(n), flip=True, crop=1))
  possible = outcomes(image, flip=True, crop=1)
  counts = np.bincount([list(possible).index(row.tobytes()) for row in got], minlength=18)
  assert len(counts) == len(possible) == 18
  chi_squared = ((counts - n / 18) ** 2 / (n / 18)).sum()
  assert chi_squared < 41  # 17 degrees of freedom: 0.1 % of fair draws are beyond 40.8


def test_an_image_depends_on_key_and_id_alone(key, images, rng):
  ids = jnp.asarray(rng.permutation(1000)[:64], jnp.int32)
  whole = np.asarray(run(key, images, ids, flip=True, crop=2))
  order = rng.permutation(64)[:10]
  part = run(key, images[order], ids[order], flip=True, crop=2)
  np.testing.assert_array_equal(part, whole[order])
  assert (run(jax.random.key(1), images, ids, flip=True, crop=2) != whole).any()
  assert (run(key, images, ids + 1, flip=True, crop=2) != whole).any()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_same_on_any_device_count_without_communication(key, images, devices):
  mesh = jsel.make_mesh(jax.devices()[:devices])
  arguments = (
    jax.device_put(key, replicated(mesh)),
    jax.device_put(images, rows_sharding(mesh)),
    jax.device_put(jnp.arange(64), rows_sharding(mesh)),
  )
  got = run(*arguments, flip=True, crop=2)
  np.testing.assert_array_equal(got, run(key, images, jnp.arange(64), flip=True, crop=2))
  program = run.lower(*arguments, flip=True, crop=2).compile().as_text()
  assert not any(name in program for name in ("all-gather", "all-reduce", "all-to-all"))


def test_jit_changes_nothing(key, images):
  eager = augment(key, images[:4], jnp.arange(4), flip=True, crop=1)
  np.testing.assert_array_equal(eager, run(key, images[:4], jnp.arange(4), flip=True, crop=1))


def test_nothing_asked_leaves_images(key, images):
  np.testing.assert_array_equal(run(key, images, jnp.arange(64), flip=False, crop=0), images)


def test_bad_arguments_are_refused(key, images):
  with pytest.raises(ValueError, match=r"\[b, h, w, c\], got shape \(64, 6\)"):
    augment(key, images[:, :, 0, 0], jnp.arange(64), flip=True, crop=0)
  with pytest.raises(ValueError, match=r"ids have shape \(3,\), there are 64 images"):
    augment(key, images, jnp.arange(3), flip=True, crop=0)
  with pytest.raises(ValueError, match="number of pixels, got -1"):
    augment(key, images, jnp.arange(64), flip=True, crop=-1)
