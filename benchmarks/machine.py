"""The machine and the versions that a result was measured with."""

import importlib.metadata
import os
import platform
from typing import Any

import jax


def machine() -> dict[str, Any]:
  """What must stand beside every figure."""
  cpu = platform.processor() or platform.machine()
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo") as file:
      names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    cpu = names[0] if names else cpu
  return {
    "cpu": cpu,
    "cores": os.cpu_count(),
    "device": jax.devices()[0].device_kind,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
  }
