"""Counts that tests leave in one JSON file."""

import fcntl
import json


def leave(path, name, counts):
  """Adds the counts of the test ``name`` to the file ``path``; nothing where there is no path."""
  if not path:
    return
  with open(path, "a+", encoding="utf-8") as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # tests of several workers write to it
    file.seek(0)
    found = json.loads(file.read() or "{}") | {name: counts}
    file.truncate(0)
    json.dump(found, file, indent=2)
