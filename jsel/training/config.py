"""Every key that a run can be told, with its default; a file in configs/ changes some of them."""

import inspect
from typing import Any

from ml_collections import ConfigDict, config_dict

from jsel import models, selectors


def base_config() -> ConfigDict:
  """The defaults. Keys are locked once a run starts, so a typo is an error."""
  config = ConfigDict()
  config.seed = 0
  config.batch_size = 128
  config.epochs = 20  # an epoch is the rows that the selector plans for one: ratio * n
  config.steps = config_dict.placeholder(int)  # if given, instead of epochs
  config.feed = "resident"  # the pool in device memory; "planned", "super_batch": read as it goes
  config.workers = 0  # processes that read for a feed; 0: threads of this one
  config.threads = 4  # that read for a feed, in each process
  config.read_ahead = 8  # batches that a feed has ready, in all or in each process
  config.accumulate = 1  # parts of a batch that gradients are computed of one after the other
  config.deterministic = False  # on GPU: no operation that may give other bits from run to run
  config.deterministic_reductions = 0  # parts of a batch, bitwise alike on so many devices; 0: off
  config.dispatch = "auto"  # "auto", "step" (the host dispatches each step) or "scan"
  config.label_smoothing = 0.0  # of the training loss
  config.log_every = 50  # steps
  config.eval_every = config_dict.placeholder(int)  # steps; None: once an epoch
  config.checkpoint_every = config_dict.placeholder(int)  # steps; None: once an epoch
  config.keep_checkpoints = 2
  config.allow_data_change = False  # resume on data of another hash, as many rows of one shape
  config.eval_batch_size = 512
  config.host_timeout = 100  # seconds; where a process of several is silent for so long, all end
  config.profile = False  # leave a trace of ten steps after warm-up in WORKDIR/profile
  config.compilation_cache = ""  # a folder (or gs:// address) where compiled programs are kept

  config.data = ConfigDict()
  config.data.name = "digits"
  config.data.dir = ""  # looked at before the system's folder
  config.data.split_seed = 0
  config.data.validation_fraction = 0.0  # of the training set
  config.data.test_fraction = 0.2  # where the data has no test set of its own
  config.data.train = ""  # files, folders, globs or TFDS splits, see docs/data.md
  config.data.train_labels = ""  # own data in npy files
  config.data.validation = ""
  config.data.validation_labels = ""
  config.data.test = ""
  config.data.test_labels = ""
  config.data.subset = ""  # a subset.parquet of python -m jsel.select: no other rows are trained on
  config.data.subset_weights = True  # rows count by its column weight, of mean 1
  config.data.allow_other_pool = False  # train on a subset of what seems to be another pool
  config.data.classes = 0  # own data and parquet: 0 counts them
  config.data.tfds_name = ""  # NAME, NAME/CONFIG or NAME:VERSION
  config.data.input_column = "image"  # tfds: feature; parquet: column
  config.data.label_column = "label"
  config.data.image_size = 0  # pixels of a side that encoded images are brought to; 0: as they are
  config.data.channels = 3  # of images in folders and parquet files: 3, or 1 for grey
  config.data.cache_dir = ""  # of copies from object stores, and of wordnet's embeddings
  config.data.encoder = "all-MiniLM-L6-v2"  # wordnet: a name or a folder; _tokens: its tokenizer
  config.data.parts = ("noun",)  # wordnet: parts of speech
  config.data.limit = 0  # wordnet: glosses that are drawn; 0: all
  config.data.max_length = 0  # wordnet_tokens: of a text; 0: as many as the encoder was made for

  # What python -m jsel.aot takes the pool to be; with 0 examples it looks at the data itself.
  config.pool = ConfigDict()
  config.pool.examples = 0
  config.pool.input_shape = ()
  config.pool.input_dtype = "uint8"
  config.pool.classes = 0

  config.augment = ConfigDict()
  config.augment.flip = False
  config.augment.crop = 0  # pixels of padding to crop from

  config.model = ConfigDict()
  config.model.name = "mlp"
  config.model.dtype = "float32"  # of the arithmetic; parameters are float32
  for name, model in models.MODELS.items():
    config.model[name] = ConfigDict(_options(model))

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"  # or "sgd" (Nesterov momentum)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "cosine"  # or "constant"
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.momentum = 0.9
  config.optimizer.clip_norm = 0.0  # of the whole gradient; 0: not clipped

  config.sharding = ConfigDict()
  config.sharding.fsdp = 1  # devices that share one copy of the parameters
  config.sharding.rules = ()  # (("head.kernel", (None, "fsdp")), ...); others by size

  config.selector = ConfigDict()
  config.selector.name = "rep_div"
  config.selector.ratio = config_dict.placeholder(float)  # None: 0.5; full: 1
  config.selector.refresh_steps = 0  # steps between plans; 0: when one is spent
  config.selector.fit_step = 0  # 0: fitted on the data; later: on the model's features
  for name in selectors.SELECTORS:
    config.selector[name] = ConfigDict(selectors.constants(name))
  return config


def _options(model: type) -> dict[str, Any]:
  """The options of a model and their defaults, less what a run supplies."""
  parameters = inspect.signature(model.__init__).parameters.values()
  supplied = ("self", "rngs", "input_shape", "classes", "dtype")
  return {p.name: p.default for p in parameters if p.name not in supplied}


# What may change between a run and its resumption without changing what comes out.
HARMLESS = ("log_every", "eval_batch_size", "keep_checkpoints", "checkpoint_every", "profile")
HARMLESS += ("compilation_cache", "data.dir", "data.cache_dir", "workers", "threads", "read_ahead")
HARMLESS += ("allow_data_change", "data.allow_other_pool", "host_timeout")
HARMLESS += ("pool.examples", "pool.input_shape", "pool.input_dtype", "pool.classes")
