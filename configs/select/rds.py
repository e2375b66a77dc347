r"""RDS+: queries take turns to pick the rows most similar to them.

python -m jsel.select --config=configs/select/rds.py --config.pool=pool.parquet \
    --config.queries=queries.parquet \
    --config.budget=0.035 --workdir=runs/rds

Two walks over the pool, one of them a check; a third where a few queries want the same rows. Column
query and similarity say which query picked a row and how near it is.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "rds"
  return config
