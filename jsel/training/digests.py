"""Digests of the files of a folder, by which a damaged one is told from what was written."""

import hashlib
import json
from pathlib import Path

from jsel.training import outputs

NAME = "digests.json"


def seal(folder: Path) -> None:
  """Writes SHA-256 of every file of ``folder`` to digests.json in it, whole or not at all.

  >>> import tempfile
  >>> folder = Path(tempfile.mkdtemp())
  >>> _ = (folder / "rows").write_text("12")
  >>> seal(folder)
  >>> find_damage(folder)
  >>> _ = (folder / "rows").write_text("13")
  >>> find_damage(folder)
  'rows is not as it was written'
  """
  files = {
    str(path.relative_to(folder)): _sha256(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != NAME
  }
  outputs.write_json(folder / NAME, {"files": files, "sha256": _of_all(files)})


def find_damage(folder: Path) -> str | None:
  """What is wrong with ``folder``, naming a file, or None if it is as `seal` left it.

  Names in digests.json that lead out of ``folder`` are damage and are not opened.
  """
  try:
    found = json.loads((folder / NAME).read_text())
    files = found["files"]
    if found["sha256"] != _of_all(files) or any(_escapes(name) for name in files):
      return f"{NAME} is not as it was written"
  except FileNotFoundError:
    return f"{NAME} is missing"
  except (OSError, ValueError, KeyError, TypeError):
    return f"{NAME} cannot be read"
  for name, digest in files.items():
    try:
      if _sha256(folder / name) != digest:
        return f"{name} is not as it was written"
    except FileNotFoundError:
      return f"{name} is missing"
    except OSError as error:
      return f"{name} cannot be read: {error.strerror}"
  return None


def _escapes(name: str) -> bool:
  return Path(name).is_absolute() or ".." in Path(name).parts


def _of_all(files: dict[str, str]) -> str:
  return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
