"""Every key that a run in rounds can be told, with its default."""

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
  """The defaults of `jsel.training.rounds`. Keys are locked once a run starts."""
  config = ConfigDict()
  config.task = "rounds"  # what train.py hands to jsel.training.rounds
  config.seed = 0
  config.rounds = 3  # of picking, training and scoring
  config.budget = 192  # rows trained on, in all rounds together
  config.batch_size = 16
  config.max_length = 128  # tokens of prompt and answer together
  config.deterministic = False  # on GPU: no operation that may give other bits from run to run
  config.compilation_cache = ""  # a folder where compiled programs are kept

  config.data = ConfigDict()
  config.data.name = "wordnet"  # or "jsonl"
  config.data.dir = ""  # of WordNet, looked at before the system's folder
  config.data.parts = ("noun",)  # of WordNet
  config.data.path = ""  # of a jsonl file
  config.data.rows = 2000  # of the pool, drawn from all; 0: all but the test rows
  config.data.test_rows = 64  # drawn beside them
  # Around a prompt; what ends an answer is said to the model after it.
  config.data.template = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
  config.data.end = "<|im_end|>"

  config.model = ConfigDict()
  config.model.name = "SmolLM2-135M-Instruct"  # of jsel.models.encoders, a folder or a GGUF file
  config.model.dtype = "float32"  # of the products
  config.model.trained_layers = 0  # the last so many; 0: all, and the words
  config.model.remat = False

  config.encoder = ConfigDict()  # of the embeddings that are clustered
  config.encoder.name = "all-MiniLM-L6-v2"
  config.encoder.cache_dir = ""  # "": in the workdir

  config.method = ConfigDict()
  config.method.name = "dac"  # or "random", which neither clusters nor asks
  config.method.clusters = 32
  config.method.iterations = 50  # of k-means
  config.method.temperature = 1.0
  config.method.compound = True  # whether weights multiply from round to round
  config.method.scorer = "perplexity"  # or "column:KEY" (of the jsonl file), "MODULE:FUNCTION"
  config.method.span = "text"  # whose perplexities are compared: "text" or "answer"
  config.method.new_tokens = 24  # of an answer of the model's own, at the most

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 5e-5
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 0.0
  config.optimizer.momentum = 0.9
  config.optimizer.clip_norm = 1.0
  return config


# What may change between a run and its resumption without changing what comes out.
HARMLESS = ("compilation_cache", "data.dir", "encoder.cache_dir")
