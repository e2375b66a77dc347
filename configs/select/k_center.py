r"""k-center: each row is the one farthest from all that were taken before.

python -m jsel.select --config=configs/select/k_center.py --config.pool=pool.parquet \
    --config.budget=0.01 --workdir=runs/k_center

Time grows with rows times budget; where the estimate is above an hour, the command stops and asks
for --config.allow_slow=True. docs/methods/k_center.md says when it pays.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "k_center"
  return config
