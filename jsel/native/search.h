// The k highest of many keys, in the order of their rows; of equal keys the first.
//
// A sample says from which key on rows are candidates, one pass collects those, and the k-th is
// searched among them. Where the sample misled, all rows are candidates.
//
// Keys are given by what works out 16 of them: keys(i, there) are those of the rows from i on,
// keys.Fetch(i) has the memory of row i on its way, and keys.Sample(i, stride, to) writes those of
// i * stride and the next 15 at that distance. With a Reaching of its own it is the last alone.
#ifndef JSEL_NATIVE_SEARCH_H_
#define JSEL_NATIVE_SEARCH_H_

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "keys.h"
#include "parallel.h"
#include "vectors.h"

namespace jsel {

constexpr int64_t kRowsAnItem = 1 << 15;
constexpr int64_t kSample = 1 << 14, kSampleOfFew = 1 << 12;
constexpr int64_t kFew = 1 << 13;  // of which more candidates than needed cost nothing
constexpr int64_t kAhead = 4096;   // rows: the processor looks no further than the page
// Keys of which more than one thread takes some: where the others may be asleep, as waking one
// takes long, and in a training step, where they have just been at work.
constexpr int64_t kShared = 1 << 18, kSharedInStep = 1 << 14;
constexpr double kSigmas = 6;  // by which the sample may be off

// Rows of one item whose keys reach `least`.
struct Candidates {
  std::unique_ptr<int32_t[], Free> keys, ids;
  int64_t count = 0;
};

template <typename Keys>
Candidates Reaching(const Keys& keys, int64_t first, int64_t last, int32_t least) {
  Candidates found{Aligned<int32_t>(last - first + kLanes),
                   Aligned<int32_t>(last - first + kLanes)};
  const __m512i bound = _mm512_set1_epi32(least);
  for (int64_t i = first; i < last; i += kLanes) {
    const __mmask16 there = First(last - i);
    keys.Fetch(i + kAhead);
    const __m512i key = keys(i, there);
    const __mmask16 mask = _mm512_mask_cmpge_epi32_mask(there, key, bound);
    if (!mask) continue;
    Pack(mask, _mm512_add_epi32(Lanes(), _mm512_set1_epi32(i)), found.ids.get() + found.count);
    found.count += Pack(mask, key, found.keys.get() + found.count);
  }
  return found;
}

// A key that somewhat more than k of the n rows reach, most likely.
template <typename Keys>
int32_t Guess(const Keys& keys, int64_t n, int64_t k) {
  const int64_t size = k < kFew ? kSampleOfFew : kSample;
  if (n < 4 * size) return kLowest + 1;
  const double share = static_cast<double>(size) / n;
  const int64_t rank = std::ceil(k * share + kSigmas * std::sqrt(k * share)) + 1;
  if (2 * rank > size) return kLowest + 1;
  const auto sample = Aligned<int32_t>(size + kLanes), room = Aligned<int32_t>(size + kLanes);
  for (int64_t i = 0; i < size; i += kLanes) keys.Sample(i, n / size, sample.get() + i);
  return std::max(KthHighest(sample.get(), size, rank, room.get()), kLowest + 1);
}

// The k highest keys, those of each item on their own.
class Search {
 public:
  template <typename Keys>
  Search(ffi::ThreadPool& pool, const Keys& keys, int64_t n, int64_t k, int64_t shared = kShared)
      : items_((n + kRowsAnItem - 1) / kRowsAnItem),
        found_(items_),
        start_(items_ + 1),
        ties_(items_) {
    int64_t count = 0;
    for (int32_t least = Guess(keys, n, k);; least = kLowest + 1) {
      ForEach(
          pool, items_,
          [&](int64_t item) {
            found_[item] =
                Reaching(keys, item * kRowsAnItem, std::min((item + 1) * kRowsAnItem, n), least);
          },
          n >= shared);
      count = 0;
      for (const Candidates& part : found_) count += part.count;
      if (count >= k || least == kLowest + 1) break;
    }
    if (count > k) kth_ = Kth(count, k);
    Count(pool, count, k);
  }

  int64_t count() const { return start_[items_]; }

  // Calls taken(place, key, row) for the rows that are among the k.
  template <typename Taken>
  void ForTaken(ffi::ThreadPool& pool, const Taken& taken) const {
    ForEach(
        pool, items_,
        [&](int64_t item) {
          int64_t to = start_[item], ties = ties_[item];
          const Candidates& part = found_[item];
          for (int64_t i = 0; i < part.count; ++i) {
            const int32_t key = part.keys[i];
            if (key < kth_ || (key == kth_ && ties-- <= 0)) continue;
            taken(to++, key, part.ids[i]);
          }
        },
        count() >= kShared);
  }

 private:
  int32_t Kth(int64_t count, int64_t k) const {
    if (!k) return std::numeric_limits<int32_t>::max();
    const auto all = Aligned<int32_t>(count + kLanes), room = Aligned<int32_t>(count + kLanes);
    int64_t at = 0;
    for (const Candidates& part : found_) {
      std::memcpy(all.get() + at, part.keys.get(), part.count * sizeof(int32_t));
      at += part.count;
    }
    return KthHighest(all.get(), count, k, room.get());
  }

  // Where each item's rows go, and how many of its ties are taken.
  void Count(ffi::ThreadPool& pool, int64_t count, int64_t k) {
    std::vector<int64_t> above(items_), tied(items_);
    const __m512i bound = _mm512_set1_epi32(kth_);
    ForEach(
        pool, items_,
        [&](int64_t item) {
          for (int64_t i = 0; i < found_[item].count; i += kLanes) {
            const __mmask16 there = First(found_[item].count - i);
            const __m512i key = _mm512_maskz_loadu_epi32(there, found_[item].keys.get() + i);
            above[item] += __builtin_popcount(_mm512_mask_cmpgt_epi32_mask(there, key, bound));
            tied[item] += __builtin_popcount(_mm512_mask_cmpeq_epi32_mask(there, key, bound));
          }
        },
        count >= kShared);
    int64_t left = k;
    for (int64_t item = 0; item < items_; ++item) left -= above[item];
    for (int64_t item = 0; item < items_; ++item) {
      ties_[item] = std::min(tied[item], left);
      left -= ties_[item];
      start_[item + 1] = start_[item] + above[item] + ties_[item];
    }
  }

  const int64_t items_;
  std::vector<Candidates> found_;
  std::vector<int64_t> start_, ties_;
  int32_t kth_ = kLowest;
};

}  // namespace jsel

#endif  // JSEL_NATIVE_SEARCH_H_
