"""ImageNet, ResNet-50 in bfloat16, half of the examples an epoch, 90 epochs of that half.

python -m jsel.aot --config=configs/imagenet.py --topology=v5e:4x4
python train.py --config=configs/imagenet.py --config.data.dir=SET --workdir=gs://BUCKET/imagenet

The first command needs no accelerator and no data: it compiles the step for the machine named, and
says what it takes of its memory. The second needs a TPU or GPUs, and ImageNet as array_record
files of decoded uint8 images [224, 224, 3] with their labels, which `python -m jsel.data.prepare`
writes; the images stay on the host or in the bucket (feed=planned) and only planned rows are read.

The recipe is the standard one (SGD with Nesterov momentum 0.9, learning rate 0.1 for each 256 rows
of a batch, 5 epochs of warm-up, cosine, label smoothing 0.1, weight decay 5e-5 on matrices alone),
but for the crops: a batch is flipped and shifted by up to 28 pixels in the step, as the files hold
one size of every image; random resized crops would have to be cut where images are decoded.
With another batch_size set optimizer.learning_rate and optimizer.warmup_steps too.

It has been compiled for TPUs v5e (4 to 256 chips), v5p and v6e and for eight H100, where it takes
2.8 GiB of a device (benchmarks/results/aot.json). It has run on no accelerator, and never on
ImageNet itself: six steps of 32 made-up images of its shape (`python -m jsel.data.prepare
--synthetic=imagenet`) on two CPU cores are all. No accuracy is claimed.
"""

from jsel.training.config import base_config

EXAMPLES = 1_281_167
BATCH_SIZE = 1024
RATIO = 0.5


def get_config():
  config = base_config()
  config.feed = "planned"
  config.data.name = "array_record"
  config.pool.examples = EXAMPLES
  config.pool.input_shape = (224, 224, 3)
  config.pool.classes = 1000
  config.augment.flip = True
  config.augment.crop = 28
  config.model.name = "resnet50"
  config.model.dtype = "bfloat16"
  config.selector.name = "rs2"
  config.selector.ratio = RATIO
  config.batch_size = BATCH_SIZE
  config.eval_batch_size = BATCH_SIZE
  config.epochs = 90
  config.label_smoothing = 0.1
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.1 * BATCH_SIZE / 256
  config.optimizer.warmup_steps = round(5 * RATIO * EXAMPLES / BATCH_SIZE)
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-5
  return config
