r"""Sensitivity sampling for least squares: a weighted sample whose fit is about that of all rows.

python -m jsel.select --config=configs/select/sensitivity_regression.py \
    --config.pool=pool.parquet --config.budget=0.035 --workdir=runs/sensitivity_regression

The pool has a column score that holds the target, NaN where a row's is not known: one a cluster is
read. With --config.method.sensitivity_regression.by=leverage none is. Fit with the column weight.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "sensitivity_regression"
  return config
