"""Every key that a selection can be told, with its default."""

from ml_collections import ConfigDict, config_dict

from jsel.selectors import methods


def base_config() -> ConfigDict:
  """The defaults; a file in configs/select/ changes some of them."""
  config = ConfigDict()
  config.seed = 0
  config.pool = ""  # files or globs, separated by commas, local, gs:// or s3://
  config.queries = ""  # likewise
  config.budget = 0.1
  config.budget_unit = "fraction"  # or "rows", "tokens" (of the column length)
  config.on_nonfinite = "raise"  # or "drop"
  config.overwrite = False  # a finished subset in the workdir
  config.columns = ConfigDict()
  for name in ("embedding", "id", "group", "source", "length", "score"):
    config.columns[name] = config_dict.placeholder(str)  # None: of that name, if it is there
  config.method = ConfigDict()
  config.method.name = "rds"
  for name in methods.METHODS:
    config.method[name] = ConfigDict(methods.constants(name))
  return config
