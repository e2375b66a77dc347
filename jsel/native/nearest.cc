// The nearest of some centers for every row: one bfloat16 product, and what it leaves in doubt.
//
// Scores are |c|^2 / 2 - x.c. A bfloat16 product is off by no more than what rounding took from the
// two vectors allows (Cauchy-Schwarz). Only centers that could be nearest by that are compared in
// float32, each by a product of its own.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "keys.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr float kUnit = 1.0f / (1 << 24);
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What decides which centers are in doubt.
struct Centers {
  const Panels<1>& panels;
  const float* exact;                     // [k, d]
  std::unique_ptr<float[], Free> half;    // [columns] |c|^2 / 2, infinite where there is no center
  std::unique_ptr<float[], Free> length;  // [columns]
  std::unique_ptr<float[], Free> lost;    // [columns] length of what rounding takes
  float longest = 0, most_lost = 0;

  Centers(const Panels<1>& of, const Matrix& centers, const Floats& half_norm)
      : panels(of),
        exact(centers.typed_data()),
        half(OfColumns(half_norm, of, kInfinity)),
        length(Aligned<float>(of.columns)),
        lost(Aligned<float>(of.columns)) {
    for (int64_t j = 0; j < of.columns; ++j) {
      length[j] = std::sqrt(of.rounded[j].square);
      lost[j] = std::sqrt(of.rounded[j].lost);
      longest = std::max(longest, length[j]);
      most_lost = std::max(most_lost, lost[j]);
    }
  }
};

// Of what is no NaN; `count` is a multiple of 32.
float Least(const float* scores, int64_t count) {
  __m512 least[2] = {_mm512_set1_ps(kInfinity), _mm512_set1_ps(kInfinity)};
  for (int64_t j = 0; j < count; j += 2 * kLanes) {
    least[0] = _mm512_min_ps(_mm512_load_ps(scores + j), least[0]);  // of a NaN, the other
    least[1] = _mm512_min_ps(_mm512_load_ps(scores + j + kLanes), least[1]);
  }
  return _mm512_reduce_min_ps(_mm512_min_ps(least[0], least[1]));
}

// Where the score is `least`, the first of equals; -1 where that is infinite.
int32_t Lowest(const float* scores, float least, const Centers& c) {
  const __m512 at = _mm512_set1_ps(least);
  for (int64_t j = 0; least < kInfinity && j < c.panels.columns; j += kLanes) {
    const __mmask16 found = _mm512_cmp_ps_mask(_mm512_load_ps(scores + j), at, _CMP_EQ_OQ);
    if (found) return j + __builtin_ctz(found);
  }
  return -1;
}

float Exactly(const float* x, const float* shift, const Centers& c, int64_t j) {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const float* center = c.exact + j * c.panels.d;
  for (int64_t i = 0; i < c.panels.d; i += kLanes) {
    const __mmask16 mask = First(c.panels.d - i);
    const __m512 value =
        _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, shift + i));
    auto& half = sum[i / kLanes % 2];
    half = _mm512_fmadd_ps(value, _mm512_maskz_loadu_ps(mask, center + i), half);
  }
  return c.half[j] - _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

// As Lowest, by float32's scores of all that rounding could have put behind; `near` has room for
// the ids of all centers and of a vector more.
int32_t Decide(const float* scores, float least, const float* x, const float* shift,
               const Rounded& row, const Centers& c, int32_t* near) {
  if (!(least < kInfinity)) return -1;
  const float sums = kUnit * (c.panels.d + 4);
  const float own = 1.001f * (std::sqrt(row.lost) + sums * std::sqrt(row.square));
  const float rough = 1.001f * std::sqrt(row.rough);
  const float rest = 1.001f * sums * c.longest * c.longest;
  const auto off = [&](float length, float lost) { return own * length + rough * lost + rest; };
  // First by what no center is off by more, then by what each may be.
  const __m512 most = _mm512_set1_ps(least + 2 * off(c.longest, c.most_lost));
  int64_t count = 0;
  for (int64_t j = 0; j < c.panels.columns; j += kLanes) {
    const __mmask16 found = _mm512_cmp_ps_mask(_mm512_load_ps(scores + j), most, _CMP_LE_OQ);
    if (!found) continue;
    count += Pack(found, _mm512_add_epi32(Lanes(), _mm512_set1_epi32(j)), near + count);
  }
  float highest = kInfinity;
  for (int64_t i = 0; i < count; ++i) {
    highest = std::min(highest, scores[near[i]] + off(c.length[near[i]], c.lost[near[i]]));
  }
  int64_t left = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t j = near[i];
    if (c.half[j] < kInfinity && scores[j] - off(c.length[j], c.lost[j]) <= highest)
      near[left++] = j;
  }
  if (left == 1) return near[0];
  int32_t label = -1;
  float nearest = kInfinity;
  for (int64_t i = 0; i < left; ++i) {
    const float score = Exactly(x, shift, c, near[i]);
    if (score < nearest) nearest = score, label = near[i];
  }
  return label;
}

ffi::Error Nearest(ffi::ThreadPool pool, Matrix x, Floats shift, Matrix centers, Floats half,
                   ffi::Result<Indices> labels, bool exact) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1];
  const Panels<1> panels(pool, centers);
  const Centers c(panels, centers, half);
  const int64_t some = panels.RowsAnItem();
  const auto start = [&] {
    return [&, scores = Aligned<float>(some * panels.stride),
            rows = Aligned<uint32_t>(some * panels.apart),
            near = Aligned<int32_t>(panels.columns + kLanes)](int64_t item) {
      Rounded rounded[kMostRows];
      const int64_t first = item * some, count = std::min(some, n - first);
      const auto row = [&](int64_t r) { return x.typed_data() + (first + r) * d; };
      ConvertRows(x, shift.typed_data(), first, count, panels, rows.get(),
                  exact ? rounded : nullptr);
      Multiply(rows.get(), count, panels, scores.get(), [&](int64_t, int64_t j, __m512 product) {
        return _mm512_sub_ps(_mm512_load_ps(c.half.get() + j), product);
      });
      for (int64_t r = 0; r < count; ++r) {
        const float* of_row = scores.get() + r * panels.stride;
        const float least = Least(of_row, panels.columns);
        labels->typed_data()[first + r] =
            exact ? Decide(of_row, least, row(r), shift.typed_data(), rounded[r], c, near.get())
                  : Lowest(of_row, least, c);
      }
    };
  };
  ForEachBy(pool, (n + some - 1) / some, start);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_nearest, jsel::Nearest,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Ret<jsel::Indices>()
                                  .Attr<bool>("exact"));
