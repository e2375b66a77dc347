r"""kMQ: k-means clusters give rows by their size, drawn by the column score.

python -m jsel.select --config=configs/select/kmq.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/kmq

The pool has a column score, higher is better. Every cluster gives its share of any budget, to a
row; column cluster says which. Walks: a check, a sample, moving the centers, labelling.
--config.method.kmq.silhouette='(64, 256, 1024)' takes the number of clusters of the highest
silhouette.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "kmq"
  return config
