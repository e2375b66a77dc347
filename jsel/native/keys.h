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

// Keys in the order of floats, those of both zeros the same; of NaN the lowest.
inline __m512i KeysOf(__m512 values) {
  const __m512i bits = (__m512i)values, sign = _mm512_srai_epi32(bits, 31);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i keys = _mm512_sub_epi32(_mm512_xor_si512(magnitude, sign), sign);
  const __mmask16 numbers = _mm512_cmp_ps_mask(values, values, _CMP_ORD_Q);
  return _mm512_mask_mov_epi32(_mm512_set1_epi32(kLowest), numbers, keys);
}

// A key and its place as one number: the higher comes first, of equal keys the one in front.
inline uint64_t Ranked(int32_t key, int32_t place) {
  return static_cast<uint64_t>(static_cast<uint32_t>(key) ^ 0x80000000u) << 32 |
         static_cast<uint32_t>(~place);
}
inline int32_t RankedKey(uint64_t ranked) {
  return static_cast<int32_t>(static_cast<uint32_t>(ranked >> 32) ^ 0x80000000u);
}
inline int32_t RankedPlace(uint64_t ranked) {
  return static_cast<int32_t>(~static_cast<uint32_t>(ranked));
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
