r"""A random order.

python -m jsel.select --config=configs/select/random.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/random

One walk, a check. With the same seed a smaller budget is within a larger one.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "random"
  return config
