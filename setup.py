"""Builds the kernels in C++; where they do not build, jsel is what it is without them."""

import platform
from pathlib import Path

import jax.ffi
from setuptools import Extension, setup

NATIVE = Path("jsel/native")
INSTRUCTIONS = ["-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]

kernels = Extension(
  "jsel.native._kernels",
  sources=sorted(map(str, NATIVE.glob("*.cc"))),
  depends=sorted(map(str, NATIVE.glob("*.h"))),
  include_dirs=[jax.ffi.include_dir()],
  language="c++",
  # What a processor must have for a kernel is asked when jsel is imported. Products are added up
  # without a rounding between where the code says so, and nowhere else.
  extra_compile_args=["-std=c++17", "-O3", "-g0", "-ffp-contract=off", *INSTRUCTIONS],
  optional=True,
)
setup(ext_modules=[kernels] if platform.machine() in ("x86_64", "AMD64") else [])
