"""What gradients in a fixed order cost: the benchmark, small."""

import jax
import pytest

from benchmarks import fixed_order


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def test_both_orders_learn_the_same_and_are_timed():
  case = fixed_order.measure("mlp", source="digits", steps=10, repeats=2, seconds=0.0)
  assert case["devices"] == jax.device_count()
  assert {name: of["turns"] for name, of in case["times"].items()} == {
    "any order": 2,
    "fixed order": 2,
  }
  low, middle, high = case["ratio"]
  assert 0 < low <= middle <= high
  lines = fixed_order.table({"cases": [case, {**case, "devices": 1}]}).splitlines()
  assert [line.split("|")[2].strip() for line in lines[2:]] == ["1", str(case["devices"])]
