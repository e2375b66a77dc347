// The largest entries of a row.
#ifndef JSEL_NATIVE_ROW_SEARCH_H_
#define JSEL_NATIVE_ROW_SEARCH_H_

#include <immintrin.h>

#include <algorithm>
#include <functional>

#include "keys.h"
#include "vectors.h"

namespace jsel {

// Keys in the order of floats, -0 below 0.
inline __m512i Keys(__m512i bits) {
  return _mm512_xor_epi32(bits, _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1));
}

// Searches one row after another, in the same memory.
class RowSearch {
 public:
  RowSearch(int64_t width, int64_t k)
      : width_(width),
        k_(k),
        sums_((kGroups * k + kLanes - 1) / kLanes),
        maxima_(Aligned<int32_t>(sums_ * kLanes)),
        room_(Aligned<int32_t>(sums_ * kLanes + kLanes)),
        keys_(Aligned<int32_t>(width + kLanes)),
        columns_(Aligned<int32_t>(width + kLanes)),
        order_(Aligned<uint64_t>(width)) {}

  void Take(const float* row, float* values, int32_t* columns) {
    const int64_t count = Reaching(row, Bound(row));
    // Highest key first, of equal ones the lowest column.
    for (int64_t i = 0; i < count; ++i) {
      order_[i] = Ranked(keys_[i], columns_[i]);
    }
    std::partial_sort(order_.get(), order_.get() + k_, order_.get() + count,
                      std::greater<uint64_t>());
    for (int64_t i = 0; i < k_; ++i) {
      columns[i] = RankedPlace(order_[i]);
      values[i] = row[columns[i]];
    }
  }

 private:
  // Entries whose maxima are compared stand in as many groups for each that is wanted.
  static constexpr int64_t kGroups = 4;

  // A key that at least k entries reach: the k-th highest of the maxima of as many groups or more.
  int32_t Bound(const float* row) {
    const int64_t each = sums_ * kLanes;
    if (width_ < 4 * each) return kLowest;
    for (int64_t s = 0; s < sums_; ++s) {
      __m512i most = _mm512_set1_epi32(kLowest);
      int64_t i = s * kLanes;
      for (; i + kLanes <= width_; i += each) {
        most = _mm512_max_epi32(most, Keys(_mm512_loadu_si512(row + i)));
      }
      _mm512_store_si512(maxima_.get() + s * kLanes, most);
    }
    return KthHighest(maxima_.get(), each, k_, room_.get());
  }

  int64_t Reaching(const float* row, int32_t least) {
    const __m512i bound = _mm512_set1_epi32(least);
    int64_t count = 0;
    for (int64_t i = 0; i < width_; i += kLanes) {
      const __mmask16 there = First(width_ - i);
      const __m512i key = Keys(_mm512_maskz_loadu_epi32(there, row + i));
      const __mmask16 mask = _mm512_mask_cmpge_epi32_mask(there, key, bound);
      if (!mask) continue;
      Pack(mask, _mm512_add_epi32(Lanes(), _mm512_set1_epi32(i)), columns_.get() + count);
      count += Pack(mask, key, keys_.get() + count);
    }
    return count;
  }

  const int64_t width_, k_, sums_;
  const std::unique_ptr<int32_t[], Free> maxima_, room_, keys_, columns_;
  const std::unique_ptr<uint64_t[], Free> order_;
};

}  // namespace jsel

#endif  // JSEL_NATIVE_ROW_SEARCH_H_
