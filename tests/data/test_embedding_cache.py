"""Files of embeddings: who may read them, and what is found damaged."""

import os
import stat

import numpy as np
import pytest

from jsel.data.embedding_cache import EmbeddingCache, text_keys

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")

KEYS = text_keys([f"text {number}" for number in range(20)])


@pytest.fixture
def cache(tmp_path):
  cache = EmbeddingCache(tmp_path, encoder="tiny 1", width=3)
  cache.write(KEYS, np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20, dtype=np.int32))
  cache.refresh()
  return cache


def file_of(cache):
  (path,) = cache.folder.glob("*.safetensors")
  return path


def test_what_is_written_is_read(cache):
  embeddings, lengths = cache.read(KEYS[::-1])
  assert embeddings[0].tolist() == [57, 58, 59]
  assert lengths.tolist() == cache.lengths(KEYS[::-1]).tolist() == list(range(20))[::-1]


def test_files_have_plain_permissions_and_leave_nothing_behind(tmp_path):
  before = os.umask(0o022)
  try:
    cache = EmbeddingCache(tmp_path, encoder="tiny 1", width=3)
    cache.write(KEYS, np.zeros((20, 3)), np.zeros(20))
  finally:
    os.umask(before)
  assert len([*cache.folder.iterdir()]) == 2
  for path in cache.folder.iterdir():
    assert stat.S_IMODE(path.stat().st_mode) == 0o644, path


@pytest.mark.parametrize("name", ["keys", "embeddings", "lengths"])
def test_a_changed_bit_is_found_by_whatever_reads_it(cache, name):
  path = file_of(cache)
  content = bytearray(path.read_bytes())
  wanted = {"keys": KEYS.tobytes()[:16], "embeddings": np.float32([1, 2]).tobytes()}
  wanted["lengths"] = np.arange(20, dtype=np.int32).tobytes()
  at = bytes(content).index(wanted[name])
  content[at] ^= 1
  path.write_bytes(content)
  again = lambda: EmbeddingCache(path.parents[1], encoder="tiny 1", width=3)
  with pytest.raises(ValueError, match=rf"{path.name} .*{name}.*: delete it"):
    again().read(KEYS)
  if name == "lengths":
    with pytest.raises(ValueError, match=rf"{path.name} .*lengths.*: delete it"):
      again().lengths(KEYS)
  path.unlink()
  assert not len(again())


@pytest.mark.parametrize("left", [0, 7, -1])
def test_a_file_that_is_cut_short_is_named(cache, left):
  path = file_of(cache)
  path.write_bytes(path.read_bytes()[:left])
  with pytest.raises(
    ValueError, match=rf"{path.name} is no whole file of embeddings .*: delete it"
  ):
    EmbeddingCache(path.parents[1], encoder="tiny 1", width=3)
