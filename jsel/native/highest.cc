// The k highest of many keys, in the order of their rows; of equal keys the first.
//
// A sample says from which key on rows are candidates, one pass collects those, and the k-th is
// searched among them. Where the sample misled, all rows are candidates.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "keys.h"
#include "parallel.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kRowsAnItem = 1 << 15;
constexpr int64_t kSample = 1 << 14, kSampleOfFew = 1 << 12;
constexpr int64_t kFew = 1 << 13;     // of which more candidates than needed cost nothing
constexpr int64_t kAhead = 4096;      // rows: the processor looks no further than the page
constexpr int64_t kShared = 1 << 18;  // keys of which more than one thread takes some
constexpr double kSigmas = 6;         // by which the sample may be off

// Rows of one item whose keys reach `least`.
struct Candidates {
  std::unique_ptr<int32_t[], Free> keys, ids;
  int64_t count = 0;
};

// Keys as they are.
struct Given {
  const int32_t* keys;

  void Fetch(int64_t i) const { _mm_prefetch(keys + i, _MM_HINT_T0); }
  __m512i operator()(int64_t i, __mmask16 there) const {
    return _mm512_maskz_loadu_epi32(there, keys + i);
  }
};

// Those of scores less what their usage costs, each rounded once; subnormal differences are 0.
struct Penalized {
  const float* scores;
  const int32_t* usage;  // none, and so with the next, where nothing is subtracted
  float penalty;
  const bool* valid;

  void Fetch(int64_t i) const {
    _mm_prefetch(scores + i, _MM_HINT_T0);
    if (usage) _mm_prefetch(usage + i, _MM_HINT_T0);
  }
  __m512i operator()(int64_t i, __mmask16 there) const {
    __m512 score = _mm512_maskz_loadu_ps(there, scores + i);
    if (usage) {
      const __m512 uses = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(there, usage + i));
      score = _mm512_sub_ps(score, _mm512_mul_ps(_mm512_set1_ps(penalty), uses));
      const __mmask16 small = _mm512_cmp_ps_mask(
          _mm512_abs_ps(score), _mm512_set1_ps(std::numeric_limits<float>::min()), _CMP_LT_OQ);
      score = _mm512_mask_mov_ps(score, small, _mm512_setzero_ps());
    }
    const __m512i keys = KeysOf(score);
    if (!valid) return keys;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, valid + i);
    return _mm512_mask_mov_epi32(_mm512_set1_epi32(kLowest), _mm_test_epi8_mask(bytes, bytes),
                                 keys);
  }
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
  const int64_t stride = n / size;
  for (int64_t i = 0; i < size; ++i) {
    sample[i] = _mm_cvtsi128_si32(_mm512_castsi512_si128(keys(i * stride, 1)));
  }
  return std::max(KthHighest(sample.get(), size, rank, room.get()), kLowest + 1);
}

// The k highest keys, those of each item on their own.
class Search {
 public:
  template <typename Keys>
  Search(ffi::ThreadPool& pool, const Keys& keys, int64_t n, int64_t k)
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
          n >= kShared);
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

template <typename Keys>
ffi::Error Write(ffi::ThreadPool& pool, const Keys& keys, int64_t n, Indices& top, Indices& ids) {
  const int64_t k = top.element_count();
  const Search search(pool, keys, n, k);
  search.ForTaken(pool, [&](int64_t place, int32_t key, int32_t row) {
    top.typed_data()[place] = key;
    ids.typed_data()[place] = row;
  });
  std::fill(top.typed_data() + search.count(), top.typed_data() + k, kLowest);
  std::fill(ids.typed_data() + search.count(), ids.typed_data() + k, -1);
  return ffi::Error::Success();
}

ffi::Error Highest(ffi::ThreadPool pool, Indices keys, ffi::Result<Indices> top,
                   ffi::Result<Indices> ids) {
  return Write(pool, Given{keys.typed_data()}, keys.element_count(), *top, *ids);
}

// The same of scores; usage and valid may be empty.
ffi::Error HighestScores(ffi::ThreadPool pool, Floats scores, Indices usage, Floats penalty,
                         Mask valid, ffi::Result<Indices> top, ffi::Result<Indices> ids) {
  const bool used = usage.element_count(), all = !valid.element_count();
  const Penalized keys{scores.typed_data(), used ? usage.typed_data() : nullptr,
                       *penalty.typed_data(), all ? nullptr : valid.typed_data()};
  return Write(pool, keys, scores.element_count(), *top, *ids);
}

// The same rows as a mask, of a k that is known when it is called.
ffi::Error HighestMask(ffi::ThreadPool pool, Indices keys, Scalar k, ffi::Result<Mask> mask) {
  const int64_t n = keys.element_count();
  const int64_t wanted = std::clamp<int64_t>(*k.typed_data(), 0, n);
  std::memset(mask->typed_data(), 0, n);
  const Search search(pool, Given{keys.typed_data()}, n, wanted);
  search.ForTaken(pool, [&](int64_t, int32_t, int32_t row) { mask->typed_data()[row] = true; });
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest_scores, jsel::HighestScores,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Mask>()
                                  .Ret<jsel::Indices>()
                                  .Ret<jsel::Indices>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest_mask, jsel::HighestMask,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Scalar>()
                                  .Ret<jsel::Mask>());
