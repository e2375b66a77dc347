"""Kernels under hostile values, shapes and dtypes: float64's answer, or a ValueError that says why.

The short form runs one shape of float32 through every kernel, and traces the others. The long form,
`pytest -n 0 tests/inputs --examples=500 --inputs-report=inputs.json`, runs them all.
"""

import functools
import re
import traceback

import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest

from tests.inputs import choices, values
from tests.inputs.hostile import Inputs, hostile, plain

CASES = choices.CASES | values.CASES
FIELDS = ("x", "scores", "weights")  # the others have dtypes of their own
DTYPES = {
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
  "float64": np.float64,
  "int8": np.int8,
  "uint8": np.uint8,
  "int32": np.int32,
  "int64": np.int64,
  "bool": np.bool_,
}
SHAPES = [(0, 3), (1, 3), (1, 1), (5, 1), (5, 0), (24, 3)]


def as_dtype(inputs, dtype):
  """``inputs`` in a dtype, of values that it has: no cast of NaN to an integer."""
  info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None

  def cast(array):
    if info is not None:
      low, high = max(info.min, -(2**20)), min(info.max, 2**20)
      array = np.clip(np.nan_to_num(array, nan=0), low, high)
    with np.errstate(over="ignore", invalid="ignore"):
      return array.astype(dtype)

  return inputs._replace(**{field: cast(getattr(inputs, field)) for field in FIELDS})


def in_float32(inputs):
  """What a kernel sees of ``inputs``."""
  with np.errstate(over="ignore"):
    return inputs._replace(**{name: getattr(inputs, name).astype(np.float32) for name in FIELDS})


def refusal(call):
  """What ``call`` gives, or None where it is refused as it should be."""
  try:
    return call()
  except ValueError as raised:
    error = raised
  frames = traceback.extract_tb(error.__traceback__)
  assert "/jsel/" in frames[-1].filename, f"not refused by a kernel: {error}"
  assert re.search(r"got |\d", str(error)), f"names no value: {error}"
  return None


def attempt(name, inputs, tally):
  call, check = CASES[name]
  tally["tried"] += 1
  got = refusal(lambda: call(inputs))
  if got is None:
    tally["refused"] += 1
    return
  check(in_float32(inputs), jax.tree.map(np.asarray, got))
  tally["answered"] += 1


@pytest.mark.parametrize("name", CASES)
def test_values(name, tally):
  @hypothesis.given(hostile())
  def run(inputs):
    refused = tally["refused"]
    attempt(name, inputs, tally)
    # One valid row has no component to whiten by.
    assert tally["refused"] == refused or (name == "whitening" and inputs.valid.sum() == 1)

  run()


@pytest.mark.parametrize("name", CASES)
def test_dtypes(name, tally, is_long):
  """Under jax_enable_x64 nothing but the dtype of what is passed through changes."""
  call, _ = CASES[name]
  for dtype in DTYPES.values():
    shapes = []
    for wide in (False, True):
      with jax.enable_x64(wide):
        inputs = as_dtype(plain(), dtype)
        tally["traced"] += 1
        found = refusal(lambda inputs=inputs: jax.eval_shape(lambda: call(inputs)))
        shapes.append(jax.tree.map(lambda leaf: leaf.dtype, found))
    if name not in values.PASSED_ON:
      assert shapes[0] == shapes[1], dtype
  if not is_long:
    return
  for dtype in DTYPES.values():
    of_dtype = hostile().map(functools.partial(as_dtype, dtype=dtype))
    for wide in (False, True):
      with jax.enable_x64(wide):

        @hypothesis.given(of_dtype)
        @hypothesis.settings(max_examples=20)
        def run(inputs):
          attempt(name, inputs, tally)

        run()


@pytest.mark.parametrize("name", CASES)
def test_shapes(name, tally, is_long):
  call, _ = CASES[name]
  for n, d in SHAPES:
    for k in sorted({0, 1, n, n + 1}):
      if is_long:

        @hypothesis.given(hostile(n=n, d=d, k=k))
        @hypothesis.settings(max_examples=10)
        def run(inputs):
          attempt(name, inputs, tally)

        run()
      else:
        tally["traced"] += 1
        refusal(lambda n=n, d=d, k=k: jax.eval_shape(lambda: call(plain(n, d, k))))


@pytest.mark.parametrize("name", CASES)
def test_valid_is_bool(name):
  """Where a kernel takes it; one that reads integers as a mask would count negative ones."""
  if name in values.WITHOUT_VALID:
    return
  call, _ = CASES[name]
  inputs: Inputs = plain()
  with pytest.raises(ValueError, match="must be bool"):
    jax.eval_shape(lambda: call(inputs._replace(valid=np.ones(len(inputs.x), np.int32))))
