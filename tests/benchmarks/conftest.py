"""The pool that benchmarks of subsets are tried on."""

import pytest

from benchmarks import glosses


@pytest.fixture(scope="module")
def rows():
  return glosses.read_digits()


@pytest.fixture(scope="module")
def parts(rows):
  return glosses.split(rows.labels)
