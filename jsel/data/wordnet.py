"""WordNet 3.0: glosses of synsets and the lexicographer file, a class of 45, that each is from."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

SYSTEM_FOLDER = Path("/usr/share/wordnet")  # of the Debian package
INSTALL = "apt-get update && apt-get install -y wordnet-base"
PARTS = ("noun", "verb", "adj", "adv")


class Glosses(NamedTuple):
  """Texts and their classes."""

  texts: list[str]
  labels: (
    np.ndarray
  )  # [n] int32 in [0, classes): the files that occur, in the order of their number
  files: np.ndarray  # [classes] int32, numbers of those files
  ids: list[str]  # "noun-00001740": the part of speech and the synset's offset
  words: list[str]  # the first of those that mean it


def read(config: ConfigDict) -> Glosses:
  """The glosses in ``config.dir`` if it is there, else in the system's folder.

  ``config.parts`` are the parts of speech, "noun" alone by default (82,115 glosses in 26 skewed
  classes); all of `PARTS` give 117,659 in 45.

  Raises:
    ValueError: if it is in neither folder, with the command that installs it, or a line is broken.
  """
  parts = tuple(config.get("parts", ("noun",)))
  unknown = [part for part in parts if part not in PARTS]
  if unknown or not parts:
    raise ValueError(f"--config.data.parts={parts} are some of {', '.join(PARTS)}")
  folders = [Path(config.dir).expanduser()] if config.get("dir") else []
  folders.append(SYSTEM_FOLDER)
  found = [folder for folder in folders if (folder / f"data.{parts[0]}").is_file()]
  if not found:
    raise ValueError(
      f"WordNet is not in {' or '.join(str(folder) for folder in folders)}: install it with "
      f"`{INSTALL}` or set --config.data.dir to the folder of its data.noun"
    )
  ids, numbers, texts, words = [], [], [], []
  for part in parts:
    path = found[0] / f"data.{part}"
    if not path.is_file():
      raise ValueError(f"{found[0]} has no {path.name}: copy all of WordNet's data files")
    for offset, number, word, text in lines(path):
      ids.append(f"{part}-{offset}")
      numbers.append(number)
      texts.append(text)
      words.append(word)
  files, labels = np.unique(np.asarray(numbers, np.int32), return_inverse=True)
  return Glosses(texts, labels.astype(np.int32), files, ids, words)


def lines(path: Path):
  """Offset, file, first word and gloss of the lines of ``path``; the licence's are indented."""
  with path.open(encoding="utf-8", errors="strict") as file:
    for count, line in enumerate(file, 1):
      if line.startswith("  "):
        continue
      head, bar, gloss = line.partition(" | ")
      fields = head.split(" ", 5)
      if not bar or len(fields) < 5 or not (fields[0].isdigit() and fields[1].isdigit()):
        raise ValueError(f"{path}:{count} is no `offset file ... | gloss`: install it again")
      # Adjectives have where they stand in brackets.
      word = fields[4].partition("(")[0].replace("_", " ")
      yield fields[0], int(fields[1]), word, gloss.strip()
