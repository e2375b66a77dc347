"""Handwritten digits, a small mlp, half of the examples an epoch.

python train.py --workdir=runs/digits
On 2 CPU cores: half a minute. Seen: test accuracy 98.38, the mean of 5 seeds (98.05 to 98.61).
"""

from jsel.training.config import base_config


def get_config():
  config = base_config()
  config.data.name = "digits"
  config.data.validation_fraction = 0.1
  config.model.name = "mlp"
  config.selector.name = "rep_div"
  config.batch_size = 64
  config.epochs = 100
  config.log_every = 50
  config.eval_every = 50
  config.checkpoint_every = 250
  return config
