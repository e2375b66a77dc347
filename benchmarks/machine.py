"""The machine and the versions that a result was measured with."""

import importlib.metadata
import json
import os
import platform
from typing import Any

import jax


def machine(more: tuple[str, ...] = ()) -> dict[str, Any]:
  """What must stand beside every figure; with the versions of ``more`` that are installed."""
  cpu = platform.processor() or platform.machine()
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo") as file:
      names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    cpu = names[0] if names else cpu
  there = {found.metadata["Name"] for found in importlib.metadata.distributions()}
  names = ("jax", "flax", "optax", "numpy", *(name for name in more if name in there))
  return {
    "cpu": cpu,
    "cores": os.cpu_count(),
    "device": jax.devices()[0].device_kind,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
  }


def machines_of(result: Any) -> str:
  """The machines and versions that a result names, wherever in it, each once, in a sentence."""
  facts = {json.dumps(fact, sort_keys=True): fact for fact in _named(result, "machine")}
  said = []
  for fact in facts.values():
    versions = [f"{what} {value}" for what, value in fact.items() if what not in ("cpu", "cores")]
    said.append(f"{fact['cpu']}, {fact['cores']} cores; {', '.join(versions)}")
  if any(_named(result, "machine_shared")):
    said.append("others used the machine meanwhile: seconds are no measure")
  return ". ".join(said)


def _named(result: Any, key: str) -> list[Any]:
  """All values of ``key`` in a tree of dictionaries and lists."""
  if not isinstance(result, dict | list):
    return []
  found = [result[key]] if isinstance(result, dict) and key in result else []
  for part in result.values() if isinstance(result, dict) else result:
    found += _named(part, key)
  return found
