r"""kM-Closest: as many clusters as rows are wanted, and the row nearest to each center.

python -m jsel.select --config=configs/select/km_closest.py --config.pool=pool.parquet \
    --config.budget=0.035 --workdir=runs/km_closest

Time grows with rows times budget; where the estimate is above an hour, the command stops and asks
for --config.allow_slow=True. Subsets are not nested.
"""

from jsel.selection.config import base_config


def get_config():
  config = base_config()
  config.method.name = "km_closest"
  return config
