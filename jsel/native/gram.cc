// The products of the columns of a matrix, less their middle, with one another: half of them,
// twice.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "keys.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kSome = 1024;  // rows at a time, of which two copies are to stay in the cache
constexpr int64_t kAhead = 128;  // floats of a row
constexpr int64_t kAtOnce = 32;  // of these, taken at a time: a vector of pairs

// How rows are held, and multiplied: as floats by vectors, or as three bfloat16 by tiles.
struct ByVectors {
  static constexpr bool kTiles = false;
  static constexpr int64_t kParts = 1, kRowsAStep = 1, kAcross = kColumns, kBlock = kRows;
  static constexpr int64_t kStepsAtOnce = kSteps, kTogether = 1;
};
struct ByTiles {
  static constexpr bool kTiles = true;
  static constexpr int64_t kParts = 3, kRowsAStep = 2, kAcross = kTiled, kBlock = kTiled;
  static constexpr int64_t kStepsAtOnce = 128;
  static constexpr int64_t kTogether = 4;  // panels, 800 kB: they stay in the second-level cache
};

// Some rows less their middle, zeros where they do not count, in panels of columns and by columns.
template <typename How>
class Rows {
 public:
  static constexpr int64_t kStepsHeld = kSome / How::kRowsAStep;
  // Columns, and rows of sums, lie so far apart: a power of two would give them the same cache
  // lines.
  static constexpr int64_t kApart = How::kParts * kStepsHeld + (How::kTiles ? 0 : kLanes);

  explicit Rows(int64_t d)
      : panels((d + How::kAcross - 1) / How::kAcross),
        width(panels * How::kAcross),
        stride(width + kLanes),
        by_panel(Aligned<uint32_t>(How::kParts * width * kStepsHeld)),
        by_column(Aligned<uint32_t>((width + How::kBlock) * kApart)),
        d_(d) {
    std::memset(by_column.get(), 0, (width + How::kBlock) * kApart * sizeof(uint32_t));
  }

  // kAtOnce of the rows from `first` on.
  void Take(const Matrix& x, const Mask& valid, const float* pivot, const float* shift,
            int64_t first, int64_t item) {
    const int64_t n = x.dimensions()[0];
    for (int64_t j = 0; j < width; j += kLanes) {
      const __mmask16 there = First(d_ - j);
      const __m512 a = _mm512_maskz_loadu_ps(there, pivot + j);
      const __m512 b = _mm512_maskz_loadu_ps(there, shift + j);
      __m512 values[kAtOnce];
      for (int64_t i = 0; i < kAtOnce; ++i) {
        const int64_t row = first + item * kAtOnce + i;
        values[i] = _mm512_setzero_ps();
        if (row < n && valid.typed_data()[row]) {
          _mm_prefetch(x.typed_data() + row * d_ + j + kAhead, _MM_HINT_T0);
          const __m512 value = _mm512_maskz_loadu_ps(there, x.typed_data() + row * d_ + j);
          values[i] = _mm512_sub_ps(_mm512_sub_ps(value, a), b);
        }
      }
      for (int part = 0; part < How::kParts; ++part) {
        Put(values, part, item * kAtOnce / How::kRowsAStep, j);
      }
    }
  }

  // From a step on: a panel, and kBlock columns.
  uint32_t* Panel(int64_t panel, int64_t step) const {
    return by_panel.get() + (panel * kStepsHeld + step) * How::kParts * How::kAcross;
  }
  uint32_t* Columns(int64_t column, int64_t step) const {
    return by_column.get() + column * kApart + step * How::kParts * (How::kTiles ? kTiled : 1);
  }

  const int64_t panels, width, stride;                // the last of sums
  const std::unique_ptr<uint32_t[], Free> by_panel;   // [panels, kStepsHeld, kAcross], or tiles
  const std::unique_ptr<uint32_t[], Free> by_column;  // [width + kBlock, kApart], or tiles

 private:
  // The next part of kAtOnce rows, sixteen columns of them from j on.
  void Put(__m512* values, int part, int64_t first_step, int64_t j) {
    constexpr int64_t kStepsHere = kAtOnce / How::kRowsAStep;
    const int64_t tile = (2 * part + j % kTiled / kTile) * kTileWords;
    uint32_t* panel = Panel(j / How::kAcross, first_step) + (How::kTiles ? tile : j % How::kAcross);
    uint32_t* columns =
        Columns(How::kTiles ? j / kTiled * kTiled : j, first_step) + (How::kTiles ? tile : 0);
    constexpr int64_t kStepApart = How::kTiles ? kTile : How::kAcross;
    constexpr int64_t kColumnApart = How::kTiles ? kTile : kApart;
    alignas(64) uint32_t steps[kStepsHere][kLanes];
    for (int64_t s = 0; s < kStepsHere; ++s) {
      __m512i step = (__m512i)values[s * How::kRowsAStep];
      if constexpr (How::kTiles) {
        const __m512i low = _mm512_cvtepu16_epi32(TakePart(values[2 * s]));
        const __m512i high = _mm512_cvtepu16_epi32(TakePart(values[2 * s + 1]));
        step = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
      }
      _mm512_store_si512(steps[s], step);
      _mm512_store_si512(panel + s * kStepApart, step);
    }
    const __m512i down = _mm512_mullo_epi32(Lanes(), _mm512_set1_epi32(kLanes));
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t s = 0; s < kStepsHere; s += kLanes) {
        _mm512_store_si512(columns + i * kColumnApart + s,
                           _mm512_i32gather_epi32(down, steps[s] + i, sizeof(float)));
      }
    }
  }

  const int64_t d_;
};

// Adds the products of kBlock columns from i on with a panel, of some steps.
void AddBlock(const Rows<ByVectors>& rows, int64_t i, int64_t panel, int64_t s, float* to) {
  // Few are added in registers before they are added to many: both roundings stay small.
  Multiply<false, true, true>(rows.Columns(i, s), rows.kApart, rows.Panel(panel, s),
                              ByVectors::kStepsAtOnce, to, rows.stride,
                              [&](int64_t r, int64_t v, __m512 sum) {
                                const float* before = to + r * rows.stride + v * kLanes;
                                return _mm512_add_ps(sum, _mm512_load_ps(before));
                              });
}

void AddBlock(const Rows<ByTiles>& rows, int64_t i, int64_t panel, int64_t s, float* to) {
  ClearTiles();
  AddTiles<ByTiles::kParts>(rows.Columns(i, s), rows.Panel(panel, s),
                            ByTiles::kStepsAtOnce / kTile);
  AddStored(to, rows.stride);
}

// Adds the products of the columns of some panels with those up to their last.
template <typename How>
void AddPanels(const Rows<How>& rows, int64_t first, float* sums) {
  const int64_t last = std::min(first + How::kTogether, rows.panels);
  for (int64_t s = 0; s < rows.kStepsHeld; s += How::kStepsAtOnce) {
    for (int64_t i = 0; i < last * How::kAcross; i += How::kBlock) {
      for (int64_t panel = first; panel < last; ++panel) {
        if (i >= (panel + 1) * How::kAcross) continue;
        AddBlock(rows, i, panel, s, sums + i * rows.stride + panel * How::kAcross);
      }
    }
  }
}

template <typename How>
void GramBy(ffi::ThreadPool& pool, const Matrix& x, const Mask& valid, const float* pivot,
            const float* shift, float* products) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1];
  Rows<How> rows(d);
  const int64_t count = (rows.width + How::kBlock) * rows.stride;
  const auto sums = Aligned<float>(count);
  std::memset(sums.get(), 0, count * sizeof(float));
  for (int64_t first = 0; first < n; first += kSome) {
    ForEach(pool, kSome / kAtOnce,
            [&](int64_t item) { rows.Take(x, valid, pivot, shift, first, item); });
    // The longest first, so that threads end together.
    const int64_t items = (rows.panels + How::kTogether - 1) / How::kTogether;
    ForEach(pool, items, [&](int64_t item) {
      [[maybe_unused]] const std::conditional_t<How::kTiles, FullTiles, int> tiles{};
      AddPanels(rows, (items - 1 - item) * How::kTogether, sums.get());
    });
  }
  ForEach(pool, (d + kLanes - 1) / kLanes, [&](int64_t part) {
    const int64_t last = std::min((part + 1) * kLanes, d);
    for (int64_t j = 0; j < d; ++j) {
      for (int64_t i = part * kLanes; i < last; ++i) {
        products[i * d + j] = sums[std::min(i, j) * rows.stride + std::max(i, j)];
      }
    }
  });
}

ffi::Error Gram(ffi::ThreadPool pool, Matrix x, Mask valid, Floats pivot, Floats shift,
                ffi::Result<Matrix> products) {
  const auto gram = HasTiles() ? GramBy<ByTiles> : GramBy<ByVectors>;
  gram(pool, x, valid, pivot.typed_data(), shift.typed_data(), products->typed_data());
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
