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

// The k highest keys, those of each item on their own.
class Search {
 public:
  Search(ffi::ThreadPool& pool, const int32_t* keys, int64_t n, int64_t k)
      : items_((n + kRowsAnItem - 1) / kRowsAnItem),
        found_(items_),
        start_(items_ + 1),
        ties_(items_) {
    int64_t count = 0;
    for (int32_t least = Guess(keys, n, k);; least = kLowest + 1) {
      ForEach(pool, items_, [&](int64_t item) {
        found_[item] =
            Reaching(keys, item * kRowsAnItem, std::min((item + 1) * kRowsAnItem, n), least);
      });
      count = 0;
      for (const Candidates& part : found_) count += part.count;
      if (count >= k || least == kLowest + 1) break;
    }
    if (count > k) kth_ = Kth(count, k);
    Count(pool, k);
  }

  int64_t items() const { return items_; }
  int64_t count() const { return start_[items_]; }

  // Calls taken(place, key, row) for the rows of an item that are among the k.
  template <typename Taken>
  void ForItem(int64_t item, const Taken& taken) const {
    int64_t to = start_[item], ties = ties_[item];
    const Candidates& part = found_[item];
    for (int64_t i = 0; i < part.count; ++i) {
      const int32_t key = part.keys[i];
      if (key < kth_ || (key == kth_ && ties-- <= 0)) continue;
      taken(to++, key, part.ids[i]);
    }
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
  void Count(ffi::ThreadPool& pool, int64_t k) {
    std::vector<int64_t> above(items_), tied(items_);
    const __m512i bound = _mm512_set1_epi32(kth_);
    ForEach(pool, items_, [&](int64_t item) {
      for (int64_t i = 0; i < found_[item].count; i += kLanes) {
        const __mmask16 there = First(found_[item].count - i);
        const __m512i key = _mm512_maskz_loadu_epi32(there, found_[item].keys.get() + i);
        above[item] += __builtin_popcount(_mm512_mask_cmpgt_epi32_mask(there, key, bound));
        tied[item] += __builtin_popcount(_mm512_mask_cmpeq_epi32_mask(there, key, bound));
      }
    });
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

ffi::Error Highest(ffi::ThreadPool pool, Indices keys, ffi::Result<Indices> top,
                   ffi::Result<Indices> ids) {
  const int64_t k = top->element_count();
  const Search search(pool, keys.typed_data(), keys.element_count(), k);
  ForEach(pool, search.items(), [&](int64_t item) {
    search.ForItem(item, [&](int64_t place, int32_t key, int32_t row) {
      top->typed_data()[place] = key;
      ids->typed_data()[place] = row;
    });
  });
  std::fill(top->typed_data() + search.count(), top->typed_data() + k, kLowest);
  std::fill(ids->typed_data() + search.count(), ids->typed_data() + k, -1);
  return ffi::Error::Success();
}

// The same rows as a mask, of a k that is known when it is called.
ffi::Error HighestMask(ffi::ThreadPool pool, Indices keys, Scalar k, ffi::Result<Mask> mask) {
  const int64_t n = keys.element_count();
  const int64_t wanted = std::clamp<int64_t>(*k.typed_data(), 0, n);
  std::memset(mask->typed_data(), 0, n);
  const Search search(pool, keys.typed_data(), n, wanted);
  ForEach(pool, search.items(), [&](int64_t item) {
    search.ForItem(item, [&](int64_t, int32_t, int32_t row) { mask->typed_data()[row] = true; });
  });
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest_mask, jsel::HighestMask,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Scalar>()
                                  .Ret<jsel::Mask>());
