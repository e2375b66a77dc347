"""Your own features or images with labels, a small mlp, half of the examples an epoch.

python train.py --config=configs/own_data.py --config.data.train=train.npz --workdir=runs/own

train.npz has `inputs` (float32 features [n, d], or uint8 images [n, h, w] or [n, h, w, c]) and
`labels` (integers from 0). Or two files, which are read without holding them in memory twice:
--config.data.train=features.npy --config.data.train_labels=labels.npy. Likewise data.test and
data.test_labels; without them a fifth of each class is held out.
"""

from jsel.training.config import base_config


def get_config():
  config = base_config()
  config.data.name = "own"
  config.model.name = "mlp"
  config.selector.name = "rep_div"
  config.epochs = 20
  return config
