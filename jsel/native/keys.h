// Keys of 32 bits: packing those of some lanes, and the k-th highest.
#ifndef JSEL_NATIVE_KEYS_H_
#define JSEL_NATIVE_KEYS_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>

#include "vectors.h"

namespace jsel {

constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();  // of rows that never win

inline __m512i Lanes() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The lanes of the mask, packed, to `to`, which has room for all 16; how many there are. (A
// compressing store would be far slower on some processors.)
inline int64_t Pack(__mmask16 mask, __m512i values, int32_t* to) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, values));
  return __builtin_popcount(mask);
}

// The k-th highest of `count` keys, which are overwritten; `room` is of count + 16 keys.
inline int32_t KthHighest(int32_t* keys, int64_t count, int64_t k, int32_t* room) {
  while (true) {
    if (count <= 64) {
      std::nth_element(keys, keys + k - 1, keys + count, std::greater<int32_t>());
      return keys[k - 1];
    }
    // The pivot has about as many keys above it as are wanted, by nine of them.
    int32_t some[9];
    for (int64_t i = 0; i < 9; ++i) some[i] = keys[(2 * i + 1) * count / 18];
    std::sort(some, some + 9, std::greater<int32_t>());
    const __m512i pivot = _mm512_set1_epi32(some[std::min<int64_t>(8, 9 * k / count)]);
    int64_t above = 0, below = 0;
    // Those below stay where they are, packed; what is read is never behind what is written.
    for (int64_t i = 0; i < count; i += kLanes) {
      const __mmask16 there = First(count - i);
      const __m512i key = _mm512_maskz_loadu_epi32(there, keys + i);
      above += Pack(_mm512_mask_cmpgt_epi32_mask(there, key, pivot), key, room + above);
      below += Pack(_mm512_mask_cmplt_epi32_mask(there, key, pivot), key, keys + below);
    }
    if (k <= above) {
      std::swap(keys, room);
      count = above;
    } else if (k <= count - below) {
      return _mm_cvtsi128_si32(_mm512_castsi512_si128(pivot));
    } else {
      k -= count - below;
      count = below;
    }
  }
}

}  // namespace jsel

#endif  // JSEL_NATIVE_KEYS_H_
