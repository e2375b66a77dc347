"""Eight CPU devices for every test, and JAX at its strictest.

Three quarters of the tests' time is compiling, so what was compiled is kept in the user's cache
folder, apart for each kind of processor; JAX's own key covers its version and the program.
"""

import hashlib
import os
import pathlib
import platform
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache


def processor() -> str:
  """The model, its instruction sets and the threads, which programs are cut for."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  kind = {
    line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))
  }
  parts = [os.environ["NPROC"], platform.machine(), *sorted(kind)]
  return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


# A collective that waits holds a thread, and a program's collectives wait side by side: with as
# many threads as devices, XLA's default, eight devices lock each other out.
os.environ.setdefault("NPROC", "32")
cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
# In the environment too, for the runs that tests start, as the flag is: tests compile far more than
# they compute.
os.environ.setdefault("XLA_FLAGS", "--xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jsel-tests" / processor()))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
  if hasattr(config, "workerinput"):
    return  # the controller has done it
  for path in pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache"):
    if path.stat().st_mtime < time.time() - 30 * 24 * 3600:
      path.unlink(missing_ok=True)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _no_programs_of_other_files():
  # A program takes some eight maps of memory, of which Linux lets a process have 65,530: beyond
  # that the next one that is compiled ends the process. All tests together come close.
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_compilation_cache(request):
  # What is compiled for a machine that is not there can be written to the cache but not read.
  if "aot" not in request.keywords:
    yield
    return
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
