// The k highest of many keys, in the order of their rows; of equal keys the first.
//
// A sample says from which key on rows are candidates, one pass collects those, and the k-th is
// searched among them. Where the sample misled, all rows are candidates.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "keys.h"
#include "parallel.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kRowsAnItem = 1 << 15;
constexpr int64_t kSample = 1 << 14;
constexpr double kSigmas = 6;  // by which the sample may be off

// Rows of one item whose keys reach `least`.
struct Candidates {
  std::unique_ptr<int32_t[], Free> keys, ids;
  int64_t count = 0;
};

Candidates Reaching(const int32_t* keys, int64_t first, int64_t last, int32_t least) {
  Candidates found{Aligned<int32_t>(last - first + kLanes),
                   Aligned<int32_t>(last - first + kLanes)};
  const __m512i bound = _mm512_set1_epi32(least);
  for (int64_t i = first; i < last; i += kLanes) {
    const __mmask16 there = First(last - i);
    const __m512i key = _mm512_maskz_loadu_epi32(there, keys + i);
    const __mmask16 mask = _mm512_mask_cmpge_epi32_mask(there, key, bound);
    if (!mask) continue;
    Pack(mask, _mm512_add_epi32(Lanes(), _mm512_set1_epi32(i)), found.ids.get() + found.count);
    found.count += Pack(mask, key, found.keys.get() + found.count);
  }
  return found;
}

// A key that somewhat more than k of the n rows reach, most likely.
int32_t Guess(const int32_t* keys, int64_t n, int64_t k) {
  if (n < 4 * kSample) return kLowest + 1;
  const double share = static_cast<double>(kSample) / n;
  const int64_t rank = std::ceil(k * share + kSigmas * std::sqrt(k * share)) + 1;
  if (2 * rank > kSample) return kLowest + 1;
  const auto sample = Aligned<int32_t>(kSample + kLanes), room = Aligned<int32_t>(kSample + kLanes);
  const int64_t stride = n / kSample;
  for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[i * stride];
  return std::max(KthHighest(sample.get(), kSample, rank, room.get()), kLowest + 1);
}

ffi::Error Highest(ffi::ThreadPool pool, Indices keys, ffi::Result<Indices> top,
                   ffi::Result<Indices> ids) {
  const int64_t n = keys.element_count(), k = top->element_count();
  const int32_t* given = keys.typed_data();
  const int64_t items = (n + kRowsAnItem - 1) / kRowsAnItem;
  std::vector<Candidates> found(items);
  int64_t count = 0;
  for (int32_t least = Guess(given, n, k);; least = kLowest + 1) {
    ForEach(pool, items, [&](int64_t item) {
      found[item] =
          Reaching(given, item * kRowsAnItem, std::min((item + 1) * kRowsAnItem, n), least);
    });
    count = 0;
    for (const Candidates& part : found) count += part.count;
    if (count >= k || least == kLowest + 1) break;
  }
  int32_t kth = kLowest;
  if (count > k) {
    const auto all = Aligned<int32_t>(count + kLanes), room = Aligned<int32_t>(count + kLanes);
    int64_t at = 0;
    for (const Candidates& part : found) {
      std::memcpy(all.get() + at, part.keys.get(), part.count * sizeof(int32_t));
      at += part.count;
    }
    kth = KthHighest(all.get(), count, k, room.get());
  }
  // Where each item's rows go, and how many of its ties are taken.
  std::vector<int64_t> start(items + 1), ties(items);
  std::vector<int64_t> above(items), tied(items);
  const __m512i bound = _mm512_set1_epi32(kth);
  ForEach(pool, items, [&](int64_t item) {
    int64_t over = 0, equal = 0;
    for (int64_t i = 0; i < found[item].count; i += kLanes) {
      const __mmask16 there = First(found[item].count - i);
      const __m512i key = _mm512_maskz_loadu_epi32(there, found[item].keys.get() + i);
      over += __builtin_popcount(_mm512_mask_cmpgt_epi32_mask(there, key, bound));
      equal += __builtin_popcount(_mm512_mask_cmpeq_epi32_mask(there, key, bound));
    }
    above[item] = over;
    tied[item] = equal;
  });
  int64_t left = k;
  for (int64_t item = 0; item < items; ++item) left -= above[item];
  for (int64_t item = 0; item < items; ++item) {
    ties[item] = std::min(tied[item], left);
    left -= ties[item];
    start[item + 1] = start[item] + above[item] + ties[item];
  }
  ForEach(pool, items, [&](int64_t item) {
    int64_t to = start[item], of_ties = ties[item];
    const Candidates& part = found[item];
    for (int64_t i = 0; i < part.count; ++i) {
      const int32_t key = part.keys[i];
      if (key < kth || (key == kth && of_ties-- <= 0)) continue;
      top->typed_data()[to] = key;
      ids->typed_data()[to++] = part.ids[i];
    }
  });
  std::fill(top->typed_data() + start[items], top->typed_data() + k, kLowest);
  std::fill(ids->typed_data() + start[items], ids->typed_data() + k, -1);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest, jsel::Highest,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Indices>()
                                  .Ret<jsel::Indices>()
                                  .Ret<jsel::Indices>());
