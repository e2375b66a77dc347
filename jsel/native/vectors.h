// Vectors of 16 floats, memory that they may be loaded from, and the arrays of XLA by short names.
#ifndef JSEL_NATIVE_VECTORS_H_
#define JSEL_NATIVE_VECTORS_H_

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace jsel {

namespace ffi = xla::ffi;

using Scalar = ffi::Buffer<ffi::S32, 0>;
using Mask = ffi::Buffer<ffi::PRED, 1>;
using Indices = ffi::Buffer<ffi::S32, 1>;
using Floats = ffi::Buffer<ffi::F32, 1>;
using Matrix = ffi::Buffer<ffi::F32, 2>;
using Bits = ffi::Buffer<ffi::U32, 1>;
using Words = ffi::Buffer<ffi::U32, 2>;
using Integers = ffi::Buffer<ffi::S32, 2>;

constexpr int64_t kLanes = 16;

// The first lanes of a vector, where fewer than all are left.
inline __mmask16 First(int64_t left) {
  return left >= kLanes ? 0xffff : static_cast<__mmask16>((1 << std::max<int64_t>(left, 0)) - 1);
}

// Bytes that all kernels hold now, and the most that they have held.
inline std::atomic<int64_t> held{0}, most_held{0};

struct Free {
  int64_t bytes = 0;
  void operator()(void* memory) const {
    std::free(memory);
    held -= bytes;
  }
};

// count items of a type, at a multiple of 64 bytes. Of some megabytes the pages are large ones
// where Linux gives such: with small ones most of the time may go into finding them.
template <typename T>
std::unique_ptr<T[], Free> Aligned(int64_t count) {
  constexpr int64_t kLarge = 1 << 21;
  const int64_t asked = std::max<int64_t>(count, 1) * sizeof(T);
  const int64_t unit = asked < kLarge ? 64 : kLarge, bytes = (asked + unit - 1) / unit * unit;
  const int64_t now = held += bytes;
  for (int64_t most = most_held; most < now && !most_held.compare_exchange_weak(most, now);) {
  }
  void* memory = std::aligned_alloc(unit, bytes);
#ifdef MADV_HUGEPAGE
  if (unit == kLarge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return std::unique_ptr<T[], Free>(static_cast<T*>(memory), Free{bytes});
}

}  // namespace jsel

#endif  // JSEL_NATIVE_VECTORS_H_
