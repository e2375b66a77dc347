// The products of the columns of a matrix, less their middle, with one another: half of them,
// twice.
#include <immintrin.h>

#include <cstring>

#include "keys.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kSome = 1024;  // rows at a time, of which two copies are to stay in the cache
// Columns, and rows of sums, lie so far apart: a power of two would give them the same cache lines.
constexpr int64_t kApart = kSome + kLanes;

// Some rows less their middle, zeros where they do not count, in panels of columns and by columns.
class Rows {
 public:
  explicit Rows(int64_t d)
      : panels((d + kColumns - 1) / kColumns),
        width(panels * kColumns),
        stride(width + kLanes),
        by_panel(Aligned<float>(width * kSome)),
        by_column(Aligned<float>((width + kRows) * kApart)),
        d_(d) {
    std::memset(by_column.get(), 0, (width + kRows) * kApart * sizeof(float));
  }

  // Sixteen of the rows from `first` on, as rows 16 * part and following.
  void Take(const Matrix& x, const Mask& valid, const float* pivot, const float* shift,
            int64_t first, int64_t part) {
    const int64_t n = x.dimensions()[0];
    alignas(64) float sixteen[kLanes][kLanes];
    for (int64_t j = 0; j < width; j += kLanes) {
      const __mmask16 there = First(d_ - j);
      const __m512 a = _mm512_maskz_loadu_ps(there, pivot + j);
      const __m512 b = _mm512_maskz_loadu_ps(there, shift + j);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t row = first + part * kLanes + i;
        __m512 value = _mm512_setzero_ps();
        if (row < n && valid.typed_data()[row]) {
          value = _mm512_maskz_loadu_ps(there, x.typed_data() + row * d_ + j);
          value = _mm512_sub_ps(_mm512_sub_ps(value, a), b);
        }
        _mm512_store_ps(sixteen[i], value);
        const int64_t panel = j / kColumns;
        _mm512_store_ps(
            by_panel.get() + (panel * kSome + part * kLanes + i) * kColumns + j % kColumns, value);
      }
      const __m512i down = _mm512_mullo_epi32(Lanes(), _mm512_set1_epi32(kLanes));
      for (int64_t i = 0; i < kLanes; ++i) {
        _mm512_store_ps(by_column.get() + (j + i) * kApart + part * kLanes,
                        _mm512_i32gather_ps(down, sixteen[0] + i, sizeof(float)));
      }
    }
  }

  const int64_t panels, width, stride;             // the last of sums
  const std::unique_ptr<float[], Free> by_panel;   // [panels, kSome, kColumns]
  const std::unique_ptr<float[], Free> by_column;  // [width + kRows, kApart]

 private:
  const int64_t d_;
};

// Adds the products of the columns of a panel with those up to its last.
void AddPanel(const Rows& rows, int64_t panel, float* sums) {
  const auto* columns = reinterpret_cast<const uint32_t*>(rows.by_column.get());
  const auto* others = reinterpret_cast<const uint32_t*>(rows.by_panel.get());
  for (int64_t s = 0; s < kSome; s += kSteps) {
    for (int64_t i = 0; i < (panel + 1) * kColumns; i += kRows) {
      float* to = sums + i * rows.stride + panel * kColumns;
      // Few are added in registers before they are added to many: both roundings stay small.
      Multiply<false, true, true>(
          columns + i * kApart + s, kApart, others + (panel * kSome + s) * kColumns, kSteps, to,
          rows.stride, [&](int64_t r, int64_t v, __m512 sum) {
            return _mm512_add_ps(sum, _mm512_load_ps(to + r * rows.stride + v * kLanes));
          });
    }
  }
}

ffi::Error Gram(ffi::ThreadPool pool, Matrix x, Mask valid, Floats pivot, Floats shift,
                ffi::Result<Matrix> products) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1];
  Rows rows(d);
  const int64_t count = (rows.width + kRows) * rows.stride;
  const auto sums = Aligned<float>(count);
  std::memset(sums.get(), 0, count * sizeof(float));
  for (int64_t first = 0; first < n; first += kSome) {
    ForEach(pool, kSome / kLanes, [&](int64_t part) {
      rows.Take(x, valid, pivot.typed_data(), shift.typed_data(), first, part);
    });
    // The longest first, so that threads end together.
    ForEach(pool, rows.panels,
            [&](int64_t item) { AddPanel(rows, rows.panels - 1 - item, sums.get()); });
  }
  ForEach(pool, (d + kLanes - 1) / kLanes, [&](int64_t part) {
    const int64_t last = std::min((part + 1) * kLanes, d);
    for (int64_t j = 0; j < d; ++j) {
      for (int64_t i = part * kLanes; i < last; ++i) {
        products->typed_data()[i * d + j] = sums[std::min(i, j) * rows.stride + std::max(i, j)];
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_gram, jsel::Gram,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Mask>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Floats>()
                                  .Ret<jsel::Matrix>());
