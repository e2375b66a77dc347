r"""Deita's filter: rows by the column score, each unlike all that were taken before.

python -m jsel.select --config=configs/select/deita.py --config.pool=pool.parquet \
    --config.budget=0.01 --workdir=runs/deita

The pool has a column score, higher is better. Rows like one that is taken come after all others, so
that any budget is met. Walks: a check and a reading of rows; docs/methods/deita.md has the cost.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "deita"
  return config
