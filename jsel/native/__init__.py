"""Kernels in C++ for CPUs with AVX-512, in the place of those that XLA compiles.

They are built where `pip install` finds a C++ compiler, and used where the processor has what they
need; elsewhere, and on every other platform, and with the environment variable JSEL_NATIVE=0, XLA's
do the same work: they are the reference that these are tested against. Their threads are XLA's own.
Processors with AMX multiply tiles of bfloat16. A float32 is the sum of three such numbers, so that
six products stand for one of float32, to rounding; where one is a sign, three are exact. Of two
such numbers three products are the grade bfloat16_3x. So an infinity, or a number that bfloat16
rounds to one, makes its sums NaN or infinite (but in best matches, where such rows are multiplied
as floats), and numbers below 2**-100 lose their last digits.
Inside of `jax.shard_map` each device works on its rows; rows that are split outside of it, by a
program's sharding alone, XLA gathers for them.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

VERSION = 3  # of the kernels' arguments and results; also in library.cc
LANES = 16  # floats of a vector
# What each of them needs of the processor.
NEEDS = {
  "best_matches": "avx512",
  "closer": "avx512",
  "count_tiles": "avx512",
  "gram": "avx512",
  "highest": "avx512",
  "highest_mask": "avx512",
  "highest_scores": "avx512",
  "nearest": "bfloat16",
  "project": "avx512",
  "rademacher": "avx512",
  "rotate": "avx512",
  "row_top_k": "avx512",
  "sae_codes": "bfloat16",
  "sae_decode": "avx512",
  "sae_gradients": "avx512",
  "segment_sum": "avx512",
  "srht": "avx512",
  "unit_rows": "avx512",
}


def available(name: str) -> bool:
  """Whether there is a kernel of this name for the CPU at hand.

  >>> available("srht") in (False, True)
  True
  """
  return name in _registered()


def most_held() -> int:
  """The most bytes, beside arguments and results, that kernels have held since the last call.

  >>> most_held() >= 0
  True
  """
  library = _library()
  if library is None:
    return 0
  library.jsel_most_held.restype = ctypes.c_int64
  return library.jsel_most_held()


def on_cpu(
  name: str, native: Callable[..., Any], default: Callable[..., Any], *arrays: jax.Array
) -> Any:
  """``native(*arrays)`` where a program is compiled for a CPU that has it, else ``default``.

  Derivatives are those of ``default``.
  """
  if not available(name):
    return default(*arrays)
  kernel = jax.custom_jvp(native)
  kernel.defjvp(lambda primals, tangents: jax.jvp(default, primals, tangents))
  return lax.platform_dependent(*arrays, cpu=kernel, default=default)


def call(
  name: str,
  shapes: Any,
  *arrays: jax.Array,
  aliases: dict[int, int] | None = None,
  **options: Any,
) -> Any:
  """The kernel's results, of ``shapes``; one element of a batch after another under `jax.vmap`."""
  # Inside of shard_map all of them must differ between the devices of an axis, or none.
  axes = [jax.typeof(array).mat.varying for array in arrays]
  every = frozenset().union(*axes)

  def varying(array: jax.Array, names: frozenset[str] = frozenset()) -> jax.Array:
    return lax.pcast(array, tuple(every - names), to="varying") if every - names else array

  arrays = tuple(map(varying, arrays, axes))
  shapes = jax.tree.map(lambda of: jax.typeof(varying(jnp.zeros(of.shape, of.dtype))), shapes)
  function = jax.ffi.ffi_call(
    f"jsel_{name}", shapes, vmap_method="sequential", input_output_aliases=aliases
  )
  return function(*arrays, **options)


@functools.cache
def _registered() -> frozenset[str]:
  """The names of the kernels that XLA knows of, which is told of all at once.

  A program from a cache asks for them by name, whoever else has been traced.
  """
  library = _library()
  if library is None:
    return frozenset()
  has = lambda name: hasattr(library, f"jsel_{name}") and library[f"jsel_has_{NEEDS[name]}"]()
  names = [name for name in NEEDS if has(name)]
  try:
    for name in names:
      handler = jax.ffi.pycapsule(getattr(library, f"jsel_{name}"))
      jax.ffi.register_ffi_target(f"jsel_{name}", handler, platform="cpu")
  except jax.errors.JaxRuntimeError as error:  # built with the headers of a newer JAX
    logging.getLogger("jsel").warning("the kernels in C++ are not used: %s", error)
    return frozenset()
  return frozenset(names)


def _library() -> ctypes.CDLL | None:
  if os.environ.get("JSEL_NATIVE") == "0":
    return None
  paths: Sequence[Path] = [
    path
    for suffix in EXTENSION_SUFFIXES
    if (path := Path(__file__).with_name(f"_kernels{suffix}")).exists()
  ]
  if not paths:
    return None
  library = ctypes.CDLL(str(paths[0]))
  built_for = getattr(library, "jsel_native_version", lambda: 0)()
  if built_for != VERSION:
    logging.getLogger("jsel").warning(
      "%s was built for another jsel and is not used: `pip install -e .` builds it anew", paths[0]
    )
    return None
  return library
