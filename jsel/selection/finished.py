"""What a workdir holds of a selection that was finished."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from jsel.selection.answers import check_same

# What not every selection writes: of one that is done over, these would be of the one before.
OF_SOME = ("subset.png", "excluded.parquet", "rows.jsonl", "rows.parquet")


def check_finished(
  workdir: epath.Path, about: Mapping[str, Any], *, harmless: Collection[str]
) -> None:
  """Raises a ValueError unless the finished selection in ``workdir`` is whole and of ``about``.

  Args:
    workdir: that has a summary.json.
    about: of the selection that is asked for: "config", "inputs" and "versions".
    harmless: keys of the config that may differ.
  """
  try:
    config, manifest = (
      json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "manifest")
    )
    inputs = manifest["data"].get("inputs", {})
    config.keys()
    if not (workdir / "subset.parquet").exists():
      raise FileNotFoundError("subset.parquet is gone")
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"the selection that was finished in {workdir} is damaged ({type(error).__name__}: {error}):"
      " select anew with --config.overwrite=True, or choose another --workdir"
    ) from error
  check_same(config, inputs, about, harmless=harmless)


def remove_finished(workdir: epath.Path) -> None:
  """Takes away what a selection left that is done over; its subset stays until it is replaced."""
  for name in ("summary.json", *OF_SOME):  # the summary first: where it is, all is
    (workdir / name).unlink(missing_ok=True)
