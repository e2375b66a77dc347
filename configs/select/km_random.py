r"""kM-Random: k-means clusters give rows by their size, drawn evenly.

python -m jsel.select --config=configs/select/km_random.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/km_random

As kmq, without scores: shares of sources and lengths stay near those of the pool.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "km_random"
  return config
