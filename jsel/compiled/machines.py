"""Machines to compile for that are not there: TPU slices by libtpu, NVIDIA GPUs by JAX's plugin."""

import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Tpu(NamedTuple):
  """A generation of TPUs."""

  memory: int  # bytes that a program may take of a device, by libtpu 0.0.52's out-of-memory message
  published: str  # memory of a chip, https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
  dimensions: int  # of a topology
  largest: int  # chips of a slice
  example: str


GIB = 2**30
TPUS = {
  # libtpu lists each of the two cores of a v4 chip as a device of its own.
  "v4": Tpu(int(15.25 * GIB), "32 GiB, in two cores", 3, 4096, "v4:2x2x1"),
  "v5e": Tpu(int(15.75 * GIB), "16 GB", 2, 256, "v5e:4x4"),
  "v5p": Tpu(int(95.73 * GIB), "95 GB", 3, 8960, "v5p:2x2x2"),
  "v6e": Tpu(int(31.24 * GIB), "32 GB", 2, 256, "v6e:4x4"),
}


class Gpu(NamedTuple):
  """A GPU as XLA wants it described."""

  name: str  # what the driver calls it
  memory: int  # bytes
  capability: tuple[int, int]  # CUDA compute capability
  cores: int  # streaming multiprocessors
  lanes: int  # float32 units of each
  shared_per_core: int  # bytes
  l2: int  # bytes
  bandwidth: int  # bytes a second
  clock: float  # GHz
  source: str


GPUS = {
  "a100": Gpu(
    "NVIDIA A100-SXM4-80GB",
    80 * 10**9,
    (8, 0),
    108,
    64,
    164 * 1024,
    40 * 2**20,
    2_039 * 10**9,
    1.41,
    "NVIDIA A100 data sheet and architecture white paper",
  ),
  "h100": Gpu(
    "NVIDIA H100 80GB HBM3",
    80 * 10**9,
    (9, 0),
    132,
    128,
    228 * 1024,
    50 * 2**20,
    3_350 * 10**9,
    1.98,
    "NVIDIA H100 data sheet and architecture white paper",
  ),
}
# Of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75
GPUS_OF_A_HOST = 8


class Machine(NamedTuple):
  """Devices to compile for."""

  topology: str
  platform: str  # "tpu" or "cuda"
  devices: list[jax.Device]
  memory: int  # bytes of each that a program may take
  memory_source: str
  compiler: str


def machine(topology: str) -> Machine:
  """The devices of ``topology``, described and not there.

  Call it before anything starts JAX's backend: it makes that the CPU's, so that nobody looks for
  an accelerator.

  Args:
    topology: a TPU's generation and shape ("v5e:16x16", "v5p:4x4x4"), or "cuda", a GPU and their
      number ("cuda:h100:8").

  Raises:
    ValueError: for an unknown or impossible topology, or if the compiler is not installed, with
      the command that does.
  """
  generation, _, shape = topology.partition(":")
  if generation == "cuda":
    return _gpus(topology, shape)
  if generation not in TPUS:
    known = ", ".join([*(tpu.example for tpu in TPUS.values()), "cuda:h100:8", "cuda:a100:8"])
    raise ValueError(f"there is no topology {topology!r}: give one such as {known}")
  return _tpus(topology, TPUS[generation], shape)


def _tpus(topology: str, tpu: Tpu, shape: str) -> Machine:
  sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
  if len(sizes) != tpu.dimensions or not 1 <= math.prod(sizes) <= tpu.largest:
    raise ValueError(
      f"topology {topology!r} needs {tpu.dimensions} sizes and at most {tpu.largest} chips, such"
      f" as {tpu.example}"
    )
  _require("libtpu", topology, "aot-tpu", "libtpu")
  # Compilers do not stand in each other's way, as users of a TPU would.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # Else libtpu asks Google Cloud's metadata server what machine this is, and complains that it is
  # none.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
  devices = _describe(topology, platform="tpu", topology_name=topology)
  version = importlib.metadata.version("libtpu")
  source = f"what libtpu lets a program take; published {tpu.published} a chip"
  return Machine(topology, "tpu", devices, tpu.memory, source, f"libtpu {version}")


def _gpus(topology: str, rest: str) -> Machine:
  name, _, count = rest.partition(":")
  if name not in GPUS or not re.fullmatch(r"[1-9]\d*", count):
    raise ValueError(
      f"topology {topology!r}: give cuda, one of {', '.join(GPUS)}, and their number, such as"
      " cuda:h100:8"
    )
  number = int(count)
  if number > GPUS_OF_A_HOST and number % GPUS_OF_A_HOST:
    raise ValueError(
      f"topology {topology!r}: more than {GPUS_OF_A_HOST} GPUs are hosts of {GPUS_OF_A_HOST} each"
    )
  _require("jax_cuda12_plugin", topology, "aot-cuda", "jax-cuda12-plugin")
  gpu = GPUS[name]
  hosts = max(number // GPUS_OF_A_HOST, 1)
  devices = _describe(
    topology,
    platform="cuda",
    topology_name="",
    target_config=target_config(gpu),
    topology=f"1x{hosts}x{number // hosts}",
  )
  version = importlib.metadata.version("jax-cuda12-plugin")
  source = f"{GPU_SHARE:.0%} of {gpu.memory / 10**9:.0f} GB, what JAX takes of it by default"
  memory = int(GPU_SHARE * gpu.memory)
  return Machine(topology, "cuda", devices, memory, source, f"jax-cuda12-plugin {version}")


def target_config(gpu: Gpu) -> str:
  """``gpu`` as text of XLA's GpuTargetConfigProto.

  >>> "core_count: 132" in target_config(GPUS["h100"])
  True
  """
  facts = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": gpu.shared_per_core - 1024,
    "shared_memory_per_core": gpu.shared_per_core,
    "core_count": gpu.cores,
    "fpus_per_core": gpu.lanes,
    "l2_cache_size": gpu.l2,
    "memory_bandwidth": gpu.bandwidth,
    "clock_rate_ghz": gpu.clock,
    "device_memory_size": gpu.memory,
  }
  major, minor = gpu.capability
  lines = [f"  {name}: {value}" for name, value in facts.items()]
  return "\n".join(
    [
      "gpu_device_info {",
      f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
      *lines,
      "}",
      'platform_name: "CUDA"',
      "dnn_version_info { major: 9 minor: 8 }",
      f'device_description_str: "{gpu.name}"',
    ]
  )


def _require(module: str, topology: str, extra: str, package: str) -> None:
  if importlib.util.find_spec(module) is None:
    raise ValueError(
      f"topology {topology!r} needs its compiler, no device: pip install 'jsel[{extra}]'"
      f" (or {package})"
    )


def _describe(name: str, **options: Any) -> list[jax.Device]:
  jax.config.update("jax_platforms", "cpu")
  try:
    return topologies.get_topology_desc(**options).devices
  except Exception as error:  # XLA's, of several types
    reason = " ".join(str(error).split())
    raise ValueError(f"topology {name!r} is refused by its compiler: {reason}") from error
