"""Verified local copies of prepared sets that are in an object store."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jsel.data import files, records

CHUNK = 1 << 22  # bytes hashed and written at a time
DOWNLOADS = 4  # files at a time


def local_copy(folder: str, info: records.Info, cache_dir: str) -> str:
  """A folder below ``cache_dir`` with the files of the prepared part at the address ``folder``.

  array_record's reader opens local files only and takes an address for an empty file; so the files
  are copied before the first row is read, each under a temporary name until its SHA-256 is that in
  info.json. What has been copied stays and is not fetched again; the folder's name has the hash of
  the records, so that a set that was replaced is copied anew. Processes may share the folder. Each
  host needs room for the whole part.

  Raises:
    ValueError: if ``cache_dir`` is not given or has no room, or a file is not what info.json says.
  """
  total = sum(shard.bytes for shard in (*info.shards, info.labels))
  if not cache_dir:
    raise ValueError(
      f"{folder}: array_record is read from local disks only, set --config.data.cache_dir to a"
      f" folder with room for {total / 1e9:.1f} GB, to which it is copied once"
    )
  if files.is_remote(cache_dir):
    raise ValueError(f"--config.data.cache_dir={cache_dir} must be a folder on a local disk")
  target = Path(cache_dir).expanduser() / f"{info.name}-{info.part}-{info.sha256[:16]}"
  target.mkdir(parents=True, exist_ok=True)
  wanted = [*info.shards, info.labels]
  size = lambda path: path.stat().st_size if path.is_file() else -1
  absent = [shard for shard in wanted if size(target / shard.file) != shard.bytes]
  missing = sum(shard.bytes for shard in absent)
  if missing > shutil.disk_usage(target).free:
    raise ValueError(
      f"{target} has {shutil.disk_usage(target).free / 1e9:.1f} GB free, {folder} needs"
      f" {missing / 1e9:.1f} GB more: set --config.data.cache_dir to a larger disk"
    )
  if absent:
    print(f"jsel: copying {missing / 1e9:.2f} GB of {folder} to {target}", flush=True)
  with ThreadPoolExecutor(DOWNLOADS) as pool:
    fetch = lambda shard: fetch_file(files.join(folder, shard.file), target / shard.file, shard)
    list(pool.map(fetch, absent))
  return str(target)


def fetch_file(source: str, target: Path, shard: records.Shard) -> None:
  """Copies ``source`` to ``target``, which appears when all of it is there and is what it was."""
  temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
  digest = hashlib.sha256()
  try:
    with temporary.open("wb") as file:
      for start in range(0, shard.bytes, CHUNK):
        stop = min(start + CHUNK, shard.bytes)
        piece = files.read_ranges(source, [start], [stop])[0]
        digest.update(piece)
        file.write(piece)
    if files.size(source) != shard.bytes or digest.hexdigest() != shard.sha256:
      raise ValueError(
        f"{source} is not the file that info.json tells of: it was changed, put the set there again"
      )
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)
