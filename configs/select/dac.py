r"""DAC's first plan: k-means clusters give rows in equal parts, drawn evenly.

python -m jsel.select --config=configs/select/dac.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/dac

Small clusters are over-represented, until they have no row left.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "dac"
  return config
