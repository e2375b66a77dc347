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
  config.columns = ConfigDict()
  for name in ("embedding", "id", "group", "source", "length", "score"):
    config.columns[name] = config_dict.placeholder(str)  # None: of that name, if it is there
  config.method = ConfigDict()
  config.method.name = "rds"
  for name in methods.METHODS:
    config.method[name] = ConfigDict(methods.constants(name))
  return config


# What may change between a run and its resumption without changing what comes out.
HARMLESS = ("overwrite", "slow_minutes", "allow_slow", "save_seconds")
