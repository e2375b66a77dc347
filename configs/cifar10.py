"""CIFAR-10, ResNet-18 with flips and crops, half of the examples an epoch.

python train.py --config=configs/cifar10.py --config.data.dir=DIR --workdir=runs/cifar10

DIR has TFDS's cifar10 prepared as array_record, or a cifar10.npz with x_train, y_train, x_test and
y_test.
For a GPU or a TPU: hours on CPU. No accuracy is claimed, as the data cannot be had where this was
written; the pieces are tested on small stand-ins.
"""

from jsel.training.config import base_config


def get_config():
  config = base_config()
  config.data.name = "cifar10"
  config.pool.examples = 50_000
  config.pool.input_shape = (32, 32, 3)
  config.pool.classes = 10
  config.augment.flip = True
  config.augment.crop = 4
  config.model.name = "resnet18"
  config.model.dtype = "bfloat16"
  config.selector.name = "rep_div"
  config.batch_size = 256
  config.epochs = 60
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.1
  config.optimizer.weight_decay = 5e-4
  config.optimizer.warmup_steps = 500
  config.optimizer.clip_norm = 5.0
  return config
