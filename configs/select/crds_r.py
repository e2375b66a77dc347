r"""CRDS-R: as rds, on random projections of several layers.

python -m jsel.select --config=configs/select/crds_r.py --config.pool=pool.parquet \
    --config.queries=queries.parquet \
    --config.method.crds_r.layers=18 \
    --config.budget=0.035 --workdir=runs/crds_r

Embeddings are pooled hidden states of that many layers, one after another; their width must be a
multiple of it. Walks as rds.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "crds_r"
  return config
