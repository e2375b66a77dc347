// Products of a few rows with panels of the rows of a matrix, that stay in the cache to be
// searched.
#ifndef JSEL_NATIVE_PRODUCTS_H_
#define JSEL_NATIVE_PRODUCTS_H_

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "vectors.h"

namespace jsel {

constexpr int64_t kRows = 6;  // of an inner block: with kVectors, 24 of 32 registers add up
constexpr int64_t kVectors = 4;
constexpr int64_t kColumns = kVectors * kLanes;
constexpr int64_t kSteps = 128;     // of a panel, 32 kB: it stays in the first-level cache
constexpr int64_t kHeld = 1 << 17;  // results held by a thread: half a megabyte
constexpr int64_t kMostRows = 60;   // that take turns with a panel

// Squared lengths of a vector, of what bfloat16 leaves of it and of what it takes.
struct Rounded {
  float square = 0, rough = 0, lost = 0;
};

// A vector as products take it: floats, or pairs of bfloat16 where kNarrow. It is continued by
// zeros.
template <bool kNarrow>
Rounded Convert(const float* x, const float* shift, int64_t d, int64_t width, uint32_t* to) {
  __m512 square = _mm512_setzero_ps(), rough = square, lost = square;
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 mask = First(d - j);
    __m512 value = _mm512_maskz_loadu_ps(mask, x + j);
    if (shift) value = _mm512_sub_ps(value, _mm512_maskz_loadu_ps(mask, shift + j));
    if (!kNarrow) {
      _mm512_store_ps(reinterpret_cast<float*>(to) + j, value);
      continue;
    }
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(value);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + j / 2), half);
    const __m512 back = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
    const __m512 off = _mm512_sub_ps(value, back);
    square = _mm512_fmadd_ps(value, value, square);
    rough = _mm512_fmadd_ps(back, back, rough);
    lost = _mm512_fmadd_ps(off, off, lost);
  }
  return {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(rough), _mm512_reduce_add_ps(lost)};
}

// The rows of a matrix in panels of kColumns, by steps of one column (two where kNarrow).
template <bool kNarrow>
struct Panels {
  int64_t count, d, width, steps, panels, stride;
  std::unique_ptr<uint32_t[], Free> packed;  // [panels, steps, kColumns]
  std::unique_ptr<Rounded[], Free> rounded;  // [stride]

  Panels(ffi::ThreadPool& pool, const Matrix& rows)
      : count(rows.dimensions()[0]),
        d(rows.dimensions()[1]),
        width((d + kLanes - 1) / kLanes * kLanes),
        steps(kNarrow ? width / 2 : width),
        panels((count + kColumns - 1) / kColumns),
        stride(panels * kColumns),
        packed(Aligned<uint32_t>(stride * steps)),
        rounded(Aligned<Rounded>(stride)) {
    ForEach(pool, panels, [&](int64_t panel) {
      const auto row = Aligned<uint32_t>(steps);
      for (int64_t i = 0; i < kColumns; ++i) {
        const int64_t j = panel * kColumns + i;
        std::memset(row.get(), 0, steps * sizeof(uint32_t));
        rounded[j] = {};
        if (j < count) {
          rounded[j] = Convert<kNarrow>(rows.typed_data() + j * d, nullptr, d, width, row.get());
        }
        uint32_t* to = packed.get() + panel * steps * kColumns + i;
        for (int64_t s = 0; s < steps; ++s) to[s * kColumns] = row[s];
      }
    });
  }

  // Rows that take turns with a panel, so that their results stay in the cache.
  int64_t RowsAnItem() const {
    return std::clamp(kHeld / stride / kRows * kRows, kRows, kMostRows);
  }
};

// `count` rows of x from `first` on, converted, and the last of them again up to a multiple of
// kRows. `rounded` has room for as many, if it is asked for.
template <bool kNarrow>
void ConvertRows(const Matrix& x, const float* shift, int64_t first, int64_t count,
                 const Panels<kNarrow>& with, uint32_t* to, Rounded* rounded = nullptr) {
  for (int64_t r = 0; r < (count + kRows - 1) / kRows * kRows; ++r) {
    const float* row = x.typed_data() + (first + std::min(r, count - 1)) * with.d;
    const Rounded found = Convert<kNarrow>(row, shift, with.d, with.width, to + r * with.steps);
    if (rounded) rounded[r] = found;
  }
}

// A value for each column of the panels, `rest` for those that no row of the matrix is in.
template <bool kNarrow>
std::unique_ptr<float[], Free> OfColumns(const Floats& values, const Panels<kNarrow>& with,
                                         float rest) {
  auto columns = Aligned<float>(with.stride);
  std::copy_n(values.typed_data(), with.count, columns.get());
  std::fill(columns.get() + with.count, columns.get() + with.stride, rest);
  return columns;
}

// Adds some steps of the products of kRows rows with a panel to `results`; the last time,
// finish(row, vector, sum) is what stays of them.
template <bool kNarrow, bool kFirst, bool kLast, typename Finish>
__attribute__((noinline)) void Multiply(const uint32_t* rows, int64_t width, const uint32_t* panel,
                                        int64_t steps, float* results, int64_t stride,
                                        const Finish& finish) {
  __m512 sum[kRows][kVectors];
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v) {
      sum[r][v] = kFirst ? _mm512_setzero_ps() : _mm512_load_ps(results + r * stride + v * kLanes);
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    __m512i other[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      other[v] = _mm512_load_si512(panel + s * kColumns + v * kLanes);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      const __m512i own = _mm512_set1_epi32(rows[r * width + s]);
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[r][v] = kNarrow ? _mm512_dpbf16_ps(sum[r][v], (__m512bh)own, (__m512bh)other[v])
                            : _mm512_fmadd_ps((__m512)own, (__m512)other[v], sum[r][v]);
      }
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(results + r * stride + v * kLanes,
                      kLast ? finish(r, v, sum[r][v]) : sum[r][v]);
    }
  }
}

// results[r, j] = finish of the product of row r and row j of the panels; `rows` are converted, and
// as many as a multiple of kRows. finish(row, column, sum) is of a vector of columns.
template <bool kNarrow, typename Finish>
void Multiply(const uint32_t* rows, int64_t count, const Panels<kNarrow>& with, float* results,
              const Finish& finish) {
  for (int64_t panel = 0; panel < with.panels; ++panel) {
    for (int64_t s = 0; s < with.steps; s += kSteps) {
      const int64_t steps = std::min(kSteps, with.steps - s);
      for (int64_t first = 0; first < count; first += kRows) {
        const auto here = [&](int64_t r, int64_t v, __m512 sum) {
          return finish(first + r, panel * kColumns + v * kLanes, sum);
        };
        const auto multiply = [&](auto is_first, auto is_last) {
          Multiply<kNarrow, is_first.value, is_last.value>(
              rows + first * with.steps + s, with.steps,
              with.packed.get() + (panel * with.steps + s) * kColumns, steps,
              results + first * with.stride + panel * kColumns, with.stride, here);
        };
        const bool last = s + steps == with.steps;
        if (s) {
          last ? multiply(std::false_type(), std::true_type())
               : multiply(std::false_type(), std::false_type());
        } else {
          last ? multiply(std::true_type(), std::true_type())
               : multiply(std::true_type(), std::false_type());
        }
      }
    }
  }
}

}  // namespace jsel

#endif  // JSEL_NATIVE_PRODUCTS_H_
