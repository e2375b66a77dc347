"""Hostile inputs of kernels: few values, many of them odd, in every mixture."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

ROWS, COLUMNS, K = 24, 3, 5
LONGEST = 2.0**125  # of a squared length; what is longer, the kernels of distances leave out
ODD = (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-40, -1e-40, -0.0, 0.0)
PLAIN = (0.0, 1.0, 2.0, -3.0, 0.5, 7.0)
IDS = np.array([0, 23, 24, -1, 3, 3], np.int32)  # of rows, some of none
WEIGHTS = (0.0, 1.0, 2.0, 0.25, -1.0, 1e30, 3e38, 1e-40, np.nan, np.inf)


class Inputs(NamedTuple):
  """What is given to a kernel; each takes those that it wants."""

  x: np.ndarray  # [n, d]
  scores: np.ndarray  # [n]
  weights: np.ndarray  # [n]
  labels: np.ndarray  # [n] int32, from -1 to 5
  usage: np.ndarray  # [n] int32
  valid: np.ndarray  # [n] bool
  k: int


def make(palette, score_palette, weight_palette, seed, padded, n=ROWS, d=COLUMNS, k=K):
  """Inputs whose entries are of the palettes: one entry is constant, two are ties."""
  rng = np.random.default_rng(seed)
  of = lambda values, shape: np.asarray(values, np.float32)[rng.integers(0, len(values), shape)]
  return Inputs(
    of(palette, (n, d)),
    of(score_palette, n),
    of(weight_palette, n),
    rng.integers(-1, 6, n).astype(np.int32),
    rng.integers(0, 2 ** rng.integers(0, 31), n).astype(np.int32),
    np.arange(n) < max(n - padded, 1),
    k,
  )


def palettes(values):
  return st.lists(st.sampled_from(values), min_size=1, max_size=4)


def hostile(**shape):
  """Strategy of `Inputs`."""
  numbers = st.one_of(palettes(PLAIN), palettes(PLAIN + ODD))
  return st.builds(
    lambda *drawn: make(*drawn, **shape),
    numbers,
    numbers,
    palettes(WEIGHTS),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 7, 23]),
  )


def plain(n=ROWS, d=COLUMNS, k=K, seed=0):
  """Inputs without anything odd, scores without ties."""
  rng = np.random.default_rng(seed)
  drawn = make(PLAIN, PLAIN, (1.0, 2.0), seed, 0, n, d, k)
  scores = rng.permutation(n).astype(np.float32)
  return drawn._replace(x=rng.standard_normal((n, d)).astype(np.float32), scores=scores)


def squares(x):
  """Squared lengths in float64, of rows rounded to float32."""
  with np.errstate(all="ignore"):
    return (x.astype(np.float32).astype(np.float64) ** 2).sum(1)


def usable(inputs):
  """Valid rows that have distances."""
  return (squares(inputs.x) < LONGEST) & inputs.valid


def counting(inputs):
  """Usable rows whose weight counts."""
  return usable(inputs) & weights_of(inputs).astype(bool)


def weights_of(inputs):
  """Weights in float64: 0 where they are no normal positive number, or of padding."""
  weights = inputs.weights.astype(np.float64)
  counts = np.isfinite(weights) & (weights >= np.finfo(np.float32).tiny) & inputs.valid
  return np.where(counts, weights, 0)


def normal(x):
  """float32 with 0 for subnormal numbers, which XLA's arithmetic on CPU has not."""
  x = x.astype(np.float32)
  return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def is_tame(inputs):
  """Whether float32 holds the squares of the rows and of their differences."""
  x = np.abs(inputs.x.astype(np.float64))
  return bool(np.all((x == 0) | ((x > 1e-3) & (x < 1e3))))


def close(got, want, scale, rtol=1e-5):
  """Equal to a share of ``scale``, the largest number that went in; NaN and infinities alike."""
  with np.errstate(all="ignore"):
    want = np.asarray(want, np.float64)
    want = np.where(np.abs(want) > np.finfo(np.float32).max, np.sign(want) * np.inf, want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    near = np.abs(np.asarray(got, np.float64) - want) <= rtol * scale + 1e-36
  assert (same | near).all(), (got, want, scale)


def wide(x):
  return x.astype(np.float64)


def within(count):
  """Which of `IDS` are ids of ``count`` rows."""
  ids = IDS
  return (ids >= 0) & (ids < count)
