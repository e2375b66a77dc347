"""The machine and the versions that a result was measured with."""

import importlib.metadata
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
