"""Whether what a workdir holds is of the config that is asked for now."""

from collections.abc import Collection, Mapping
from typing import Any


def check_resumable(
  saved: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  harmless: Collection[str],
  remedy: str = "choose another --workdir, or the same values",
) -> None:
  """Raises a ValueError that names the keys by which ``config`` differs from the saved one.

  Args:
    saved: the config that the workdir's run had, as in its config.json.
    config: the one of now.
    harmless: keys, with dots, that may differ.
    remedy: what the message advises.

  >>> check_resumable({"seed": 0, "a": {"b": 1}}, {"seed": 0, "a": {"b": 2}}, harmless=("a.b",))
  """
  before, now = _flat(saved), _flat(config)
  keys = [key for key in sorted({*before, *now} - set(harmless)) if before.get(key) != now.get(key)]
  if keys:
    told = lambda flat: ", ".join(f"{key}={flat.get(key)!r}" for key in keys)
    raise ValueError(
      f"the workdir holds a run with {told(before)}, this one has {told(now)}: {remedy}"
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    inner = isinstance(value, Mapping)
    flat |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
  return flat
