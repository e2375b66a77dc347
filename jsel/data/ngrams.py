"""Words of texts and hashes of runs of them, to compare texts by."""

import functools
import hashlib
import re
import unicodedata

import numpy as np

WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers of it lose nothing


def words(text: str) -> list[str]:
  """Lower-case runs of letters and digits, without accents' encoding and punctuation.

  A language that writes no spaces has few and long ones.

  >>> words("What's the time? 5 o'clock!")
  ['what', 's', 'the', 'time', '5', 'o', 'clock']
  """
  return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def word_hashes(text: str) -> np.ndarray:
  """A number for each of the `words`, ``[m]`` uint64, the same in every process."""
  return np.array([_hash(word) for word in words(text)], np.uint64)


def gram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
  """A number for each run of ``n`` words, ``[m - n + 1]`` uint64, none where there are fewer.

  Args:
    hashes: of the words, ``[m]``.
    n: words of a run.

  >>> hashes = word_hashes("to be or not to be")
  >>> np.unique(gram_hashes(hashes, 2)).size
  4
  """
  m = len(hashes) - n + 1
  if m < 1:
    return np.zeros(0, np.uint64)
  total = np.full(m, np.uint64(n))
  for place in range(n):
    total = total * FACTOR + hashes[place : place + m]  # modulo 2**64
  # So that all bits depend on all words.
  total = (total ^ (total >> np.uint64(32))) * FACTOR
  return total ^ (total >> np.uint64(29))


@functools.lru_cache(maxsize=1 << 20)
def _hash(word: str) -> int:
  return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
