"""Builds the kernels in C++; where they do not build, jsel is what it is without them."""

import platform

import jax.ffi
from setuptools import Extension, setup

NATIVE = "jsel/native"
SOURCES = (
  "gram",
  "highest",
  "nearest",
  "project",
  "rademacher",
  "row_topk",
  "sae",
  "seeding",
  "segments",
  "srht",
  "supported",
)
HEADERS = ("keys", "parallel", "products", "row_search", "vectors")

kernels = Extension(
  "jsel.native._kernels",
  sources=[f"{NATIVE}/{name}.cc" for name in SOURCES],
  depends=[f"{NATIVE}/{name}.h" for name in HEADERS],
  include_dirs=[jax.ffi.include_dir()],
  language="c++",
  # What a processor must have for a kernel is asked when jsel is imported.
  extra_compile_args=["-std=c++17", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-g0"],
  optional=True,
)
setup(ext_modules=[kernels] if platform.machine() in ("x86_64", "AMD64") else [])
