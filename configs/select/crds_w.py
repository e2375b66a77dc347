r"""CRDS-W: as rds, after whitening by the pool's principal components.

python -m jsel.select --config=configs/select/crds_w.py --config.pool=pool.parquet \
    --config.queries=queries.parquet \
    --config.budget=0.035 --workdir=runs/crds_w

Three walks over the pool: a check, the covariance of all rows, the matching. Components kept
are min(512, max(32, d / 8)) of d, or --config.method.crds_w.rank.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "crds_w"
  return config
