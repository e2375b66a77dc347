"""A small case of the comparison of samples for least squares."""

import numpy as np
from sklearn.datasets import load_diabetes

from benchmarks import sensitivity_regression


def test_samples_are_fitted_and_shown():
  case = sensitivity_regression.Case(load_diabetes, 30, (60, 442))
  found = sensitivity_regression.measure(case, clusterings=1, draws=12)
  assert (found["size"], found["columns"]) == (442, 10)
  assert len(found["results"]) == 3 * 2
  for result in found["results"]:
    excess, error = np.array(result["excess_risk"]), np.array(result["sum_error"])
    assert len(excess) == 12
    if result["rows"] == 442:
      np.testing.assert_allclose(excess, 0, atol=1e-9)
      np.testing.assert_allclose(error, 0, atol=1e-9)
    else:
      assert (excess > 0).all()
      assert excess.mean() < 1.5  # ten columns, fitted to 60 rows
      assert abs(error.mean()) < 4 * error.std(ddof=1) / np.sqrt(12)
  text = sensitivity_regression.table({"diabetes": found})
  assert text.count("\n") == 1 + 6
  assert "| diabetes | 60 | clusters | 90 |" in text
