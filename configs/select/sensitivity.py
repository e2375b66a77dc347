r"""Sensitivity sampling: rows drawn by a bound on their loss, with unbiased weights.

python -m jsel.select --config=configs/select/sensitivity.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/sensitivity

The pool has a column score that holds losses, NaN where a row's is not known: some are enough. Sums
over the subset, weighted by column weight, estimate sums over the pool: train with them.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "sensitivity"
  return config
