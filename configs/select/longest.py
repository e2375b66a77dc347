r"""The longest rows.

python -m jsel.select --config=configs/select/longest.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/longest

The pool has a column length. One walk, a check; the baseline to beat where answers are long.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "longest"
  return config
