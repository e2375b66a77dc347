"""The benchmark that compiles for machines that are not there."""

import json

import jax
import pytest

from benchmarks import aot


def test_the_table_has_a_row_a_case():
  found = json.loads(aot.PATH.read_text())
  assert aot.table(found).count("\n|") == len(aot.cases()) + len(aot.SELECTORS) + 3


@pytest.mark.aot
def test_a_plan_of_256_chips():
  pytest.importorskip("libtpu")
  # Optax's schedules promote.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    found = aot.plan_of("rs2")
  assert found["refused"] == ""
  assert found["kept_bytes"] < 2**25
