// Products of a few rows with panels of the rows of a matrix, that stay in the cache to be
// searched.
#ifndef JSEL_NATIVE_PRODUCTS_H_
#define JSEL_NATIVE_PRODUCTS_H_

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "parallel.h"
#include "tiles.h"
#include "vectors.h"

namespace jsel {

constexpr int64_t kRows = 6;  // of an inner block: with kVectors, 24 of 32 registers add up
constexpr int64_t kVectors = 4;
constexpr int64_t kColumns = kVectors * kLanes;
constexpr int64_t kSteps = 128;     // of a panel, 32 kB: it stays in the first-level cache
constexpr int64_t kHeld = 1 << 17;  // results held by a thread: half a megabyte
constexpr int64_t kMostRows = 128;  // that take turns with a panel

inline float Dot(const float* a, const float* b, int64_t columns) {
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const __mmask16 there = First(columns - i);
    auto& part = sum[i / kLanes % 4];
    part = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, a + i), _mm512_maskz_loadu_ps(there, b + i),
                           part);
  }
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

// Squared lengths of a vector, of what bfloat16 leaves of it and of what it takes.
struct Rounded {
  float square = 0, rough = 0, lost = 0;
};

// Where the parts of a vector's 32 columns, of which pairs are 16 words, lie.
struct Places {
  int64_t group, part;  // words from one to the next
};

// A vector as products take it, continued by zeros: floats where there are no parts, or pairs of
// bfloat16. Lengths are found where they are asked for.
template <int kParts, bool kMeasured>
Rounded Convert(const float* x, const float* shift, int64_t d, int64_t width, Places places,
                uint32_t* to) {
  constexpr int64_t kAhead = 4096;  // floats: the processor looks no further than the page
  __m512 square = _mm512_setzero_ps(), rough = square, lost = square;
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 mask = First(d - j);
    _mm_prefetch(x + j + kAhead, _MM_HINT_T0);
    __m512 value = _mm512_maskz_loadu_ps(mask, x + j);
    if (shift) value = _mm512_sub_ps(value, _mm512_maskz_loadu_ps(mask, shift + j));
    if (kParts == 0) {
      _mm512_store_ps(reinterpret_cast<float*>(to) + j, value);
      continue;
    }
    __m512 left = value;
    for (int part = 0; part < kParts; ++part) {
      const __m256i some = TakePart(left);
      uint32_t* place = to + j / 32 * places.group + part * places.part + j % 32 / 2;
      _mm256_store_si256(reinterpret_cast<__m256i*>(place), some);
      if (kMeasured && part == 0) {
        const __m512 back = Float(some), off = _mm512_sub_ps(value, back);
        square = _mm512_fmadd_ps(value, value, square);
        rough = _mm512_fmadd_ps(back, back, rough);
        lost = _mm512_fmadd_ps(off, off, lost);
      }
    }
  }
  if (!kMeasured) return {};
  return {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(rough), _mm512_reduce_add_ps(lost)};
}

// The rows of a matrix in panels of columns, by steps of one column, of two where there are parts.
template <int kParts>
struct Panels {
  static constexpr int64_t kWhole = kParts ? 32 : kLanes;  // rows are continued to these
  static constexpr int64_t kEach = std::max(kParts, 1);

  bool tiled;             // are products those of tiles? Those of more than one part are.
  int64_t block, across;  // rows that are multiplied at a time, columns of a panel
  int64_t count, d, width, steps, row;
  int64_t panels, columns;
  // From one converted row to the next, and from one row of results: powers of two would give them
  // the same cache lines.
  int64_t apart, stride;
  std::unique_ptr<uint32_t[], Free> packed;  // [panels, steps, across], or [panels, tiles]
  std::unique_ptr<Rounded[], Free> rounded;  // [columns]

  Panels(ffi::ThreadPool& pool, const Matrix& rows)
      : tiled(kParts && HasTiles()),
        block(tiled ? kTiled : kRows),
        across(tiled ? kTiled : kColumns),
        count(rows.dimensions()[0]),
        d(rows.dimensions()[1]),
        width((d + kWhole - 1) / kWhole * kWhole),
        steps(kParts ? width / 2 : width),
        row(kEach * steps),
        panels((count + across - 1) / across),
        columns(panels * across),
        apart(tiled ? row : row + kLanes),
        stride(columns + kLanes),
        packed(Aligned<uint32_t>(columns * row)),
        rounded(Aligned<Rounded>(columns)) {
    ForEach(pool, panels, [&](int64_t panel) {
      const auto converted = Aligned<uint32_t>(row);
      uint32_t* to = packed.get() + panel * row * across;
      for (int64_t i = 0; i < across; ++i) {
        const int64_t j = panel * across + i;
        std::memset(converted.get(), 0, row * sizeof(uint32_t));
        rounded[j] = {};
        if (j < count) {
          rounded[j] = Convert<kParts, kParts == 1>(rows.typed_data() + j * d, nullptr, d, width,
                                                    {kEach * kTile, kTile}, converted.get());
        }
        for (int64_t s = 0; s < row; ++s) {
          const int64_t tile = s / kTile * 2 + i / kTile;
          to[tiled ? tile * kTileWords + s % kTile * kTile + i % kTile : s * across + i] =
              converted[s];
        }
      }
    });
  }

  // Rows that take turns with a panel, so that their results stay in the cache.
  int64_t RowsAnItem() const {
    return std::clamp(kHeld / columns, block, tiled ? kMostRows : kMostRows / 2) / block * block;
  }
};

// `count` rows of x from `first` on, converted, and the last of them again up to a whole block.
// `rounded` has room for as many, if it is asked for.
template <int kParts>
void ConvertRows(const Matrix& x, const float* shift, int64_t first, int64_t count,
                 const Panels<kParts>& with, uint32_t* to, Rounded* rounded = nullptr) {
  const Places places = with.tiled ? Places{with.kEach * kOperand, kOperand} : Places{kTile, 0};
  for (int64_t r = 0; r < (count + with.block - 1) / with.block * with.block; ++r) {
    const float* row = x.typed_data() + (first + std::min(r, count - 1)) * with.d;
    uint32_t* place = to + r * with.apart;
    if (with.tiled) place = to + r / kTiled * kTiled * with.row + r % kTiled * kTile;
    if (rounded) {
      rounded[r] = Convert<kParts, true>(row, shift, with.d, with.width, places, place);
    } else {
      Convert<kParts, false>(row, shift, with.d, with.width, places, place);
    }
  }
}

// A value for each column of the panels, `rest` for those that no row of the matrix is in.
template <int kParts>
std::unique_ptr<float[], Free> OfColumns(const Floats& values, const Panels<kParts>& with,
                                         float rest) {
  auto of = Aligned<float>(with.columns);
  std::copy_n(values.typed_data(), with.count, of.get());
  std::fill(of.get() + with.count, of.get() + with.columns, rest);
  return of;
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

// The same, of all panels with whole blocks of rows, by tiles.
template <int kParts, typename Finish>
void MultiplyByTiles(const uint32_t* rows, int64_t count, const Panels<kParts>& with,
                     float* results, const Finish& finish) {
  const FullTiles tiles;
  alignas(64) float sums[kTiled * kTiled];
  for (int64_t panel = 0; panel < with.panels; ++panel) {
    for (int64_t first = 0; first < count; first += kTiled) {
      ClearTiles();
      AddTiles<kParts>(rows + first * with.row, with.packed.get() + panel * kTiled * with.row,
                       with.steps / kTile);
      StoreTiles(sums);
      for (int64_t r = 0; r < kTiled; ++r) {
        for (int64_t j = 0; j < kTiled; j += kLanes) {
          const int64_t column = panel * kTiled + j;
          _mm512_store_ps(results + (first + r) * with.stride + column,
                          finish(first + r, column, _mm512_load_ps(sums + r * kTiled + j)));
        }
      }
    }
  }
}

// results[r, j] = finish of the product of row r and row j of the panels; `rows` are converted, and
// whole blocks. finish(row, column, sum) is of a vector of columns.
template <int kParts, typename Finish>
void Multiply(const uint32_t* rows, int64_t count, const Panels<kParts>& with, float* results,
              const Finish& finish) {
  if constexpr (kParts > 0) {
    if (with.tiled) return MultiplyByTiles(rows, count, with, results, finish);
  }
  for (int64_t panel = 0; panel < with.panels; ++panel) {
    for (int64_t s = 0; s < with.steps; s += kSteps) {
      const int64_t steps = std::min(kSteps, with.steps - s);
      for (int64_t first = 0; first < count; first += kRows) {
        const auto here = [&](int64_t r, int64_t v, __m512 sum) {
          return finish(first + r, panel * kColumns + v * kLanes, sum);
        };
        const auto multiply = [&](auto is_first, auto is_last) {
          Multiply<kParts == 1, is_first.value, is_last.value>(
              rows + first * with.apart + s, with.apart,
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
