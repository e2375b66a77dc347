"""Every key that a selection can be told, with its default."""

from ml_collections import ConfigDict, config_dict

from jsel.selectors import methods


def base_config() -> ConfigDict:
  """The defaults; a file in configs/select/ changes some of them."""
  config = ConfigDict()
  config.seed = 0
  config.pool = ""  # files or globs, separated by commas, local, gs:// or s3://
  config.queries = ""  # likewise; or sets of several tasks, NAME=FILE,NAME=FILE
  config.task_quotas = ""  # of the tasks in the budget, NAME:PART,NAME:PART; "": equal
  config.budget = 0.1
  config.budget_unit = "fraction"  # or "rows", "tokens" (of the column length)
  config.must_include = ""  # a file of ids, .txt with one a line or .parquet: taken first
  config.must_exclude = ""  # likewise: no part of the pool
  config.caps = ""  # the most of a source: NAME:ROWS or NAME:SHARE, a share with a point
  config.floors = ""  # the least of a source, likewise
  config.on_nonfinite = "raise"  # or "drop"
  config.write_rows = ""  # "jsonl" or "parquet": the rows of the subset themselves
  config.picture = True  # subset.png
  config.overwrite = False  # what another run has left in the workdir
  config.slow_minutes = 60.0  # estimated, beyond which a run needs allow_slow
  config.allow_slow = False
  config.save_seconds = 60.0  # between two savings of a walk that is under way
  config.host_timeout = 100  # seconds; where a process of several is silent for so long, all end
  config.columns = ConfigDict()
  for name in ("embedding", "id", "group", "source", "length", "score"):
    config.columns[name] = config_dict.placeholder(str)  # None: of that name, if it is there
  _texts(config)
  _searches(config)
  config.method = ConfigDict()
  config.method.name = "rds"
  for name in methods.METHODS:
    config.method[name] = ConfigDict(methods.constants(name))
  return config


def _texts(config: ConfigDict) -> None:
  """Of texts, and of which model embeddings are."""
  config.model = ""  # of the pool's embeddings, where its files do not say
  config.queries_model = ""  # likewise
  config.exclude_model = ""
  config.encoder = ""  # of texts: a name, or the folder or GGUF file of a model
  config.cache_dir = ""  # of their embeddings; "": in the workdir
  config.shard = ""  # "i/n": encodes that part of the texts, and ends
  config.encoding = ConfigDict()
  config.encoding.pooling = ""  # "mean", "position_weighted", "last_token"; "": the encoder's
  config.encoding.layers = (-1,)  # whose states are pooled, one after another; 0: embeddings
  config.encoding.max_length = 0  # tokens that are read of a text; 0: what the encoder was made for
  config.encoding.dtype = "float32"  # or "bfloat16", of products
  config.encoding.batch_tokens = 4096
  for name in ("text", "queries_text", "exclude_text"):
    config[name] = ConfigDict()
    config[name].format = ""  # "text", "alpaca", "messages", "sharegpt"; "": by the first row
    config[name].column = ""  # of the text or the turns; "": that of the format
  config.text.span = "both"  # or "prompt", "answer": what is embedded, of queries too
  config.text.template = ""  # a Jinja template of a chat; "": a line "role: content" a turn


def _searches(config: ConfigDict) -> None:
  """What is looked for in the pool and not chosen from."""
  config.exclude = ""  # files of an evaluation set, texts or embeddings
  config.exclude_ngram = 13  # words in a row that are in both; 0: not compared
  config.exclude_similarity = 0.0  # the least cosine; 0: not compared
  config.dedup_text = 0.0  # the least Jaccard similarity of word 5-grams; 0: not compared
  config.dedup = 0.0  # the least cosine; 0: not compared
  config.dedup_cells = 0  # of k-means, within which rows are compared; 0: the root of the rows


# What may change between a run and its resumption without changing what comes out.
HARMLESS = ("overwrite", "slow_minutes", "allow_slow", "save_seconds", "cache_dir", "host_timeout")
