"""Sources of examples: a config section becomes checked arrays on the host."""

import difflib

from ml_collections import ConfigDict

from jsel.data import cifar10, digits, fashion_mnist, own
from jsel.data.arrays import Dataset, Split, fingerprint
from jsel.data.split import hold_out

__all__ = ["SOURCES", "Dataset", "Split", "load"]

SOURCES = {
  "cifar10": cifar10.read,
  "digits": digits.read,
  "fashion_mnist": fashion_mnist.read,
  "own": own.read,
}


def load(config: ConfigDict) -> Dataset:
  """The data set that the config section ``data`` describes.

  Args:
    config: ``name`` (a key of `SOURCES`); ``dir``, where to look first; ``validation_fraction`` of
      the train rows held out of every class, 0 for none; ``split_seed`` of what is held out. For
      "own" also ``train``, ``train_labels``, ``test``, ``test_labels``, ``test_fraction`` and
      ``classes``. All but the name may be absent.

  Raises:
    ValueError: in one line with the remedy: an unknown name, data that is not on the machine, a
      broken file, or rows that are not what they should be.

  >>> digits = load(ConfigDict({"name": "digits", "validation_fraction": 0.1, "split_seed": 0}))
  >>> len(digits.train.labels), len(digits.validation.labels), len(digits.test.labels)
  (1294, 144, 359)
  """
  name = config.name
  if name not in SOURCES:
    near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0)[0]
    raise ValueError(
      f"there is no data set {name!r}, did you mean {near!r}? There are {', '.join(SOURCES)}"
    )
  found = SOURCES[name](config)
  fraction = config.get("validation_fraction", 0)
  if fraction:
    train, validation = hold_out(found.train, fraction, seed=config.get("split_seed", 0))
    found = found._replace(train=train, validation=validation)
  return found._replace(sha256=fingerprint(found.train, found.validation, found.test))
