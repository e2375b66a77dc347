r"""QDIT: each row is the one that adds most to the pool's coverage and to quality.

python -m jsel.select --config=configs/select/qdit.py --config.pool=pool.parquet \
    --config.budget=0.01 --workdir=runs/qdit

The pool has a column score, higher is better. Time grows with the square of the rows; where the
estimate is above an hour, the command stops and asks for --config.allow_slow=True.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "qdit"
  return config
