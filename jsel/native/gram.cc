// The mean of rows, and the products of their columns, less it, with one another: half of them,
// twice.
//
// Some rows at a time are taken to the mean of their own, so that nothing cancels and none is read
// twice; what means differ by is added as rows of their own, each as heavy as those that it is of
// (Chan, Golub, LeVeque, 1979).
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "keys.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kSome = 512;   // rows at a time, of which two copies are to stay in the cache
constexpr int64_t kAhead = 128;  // floats of a row
constexpr int64_t kAtOnce = 32;  // of these, with a mean of their own: a vector of pairs

// How rows are held, and multiplied: as floats by vectors, or as bfloat16 by tiles.
struct ByVectors {
  static constexpr bool kTiles = false;
  static constexpr int64_t kParts = 1, kRowsAStep = 1, kAcross = kColumns, kBlock = kRows;
  static constexpr int64_t kStepsAtOnce = kSteps, kTogether = 1, kDown = 1 << 20;
};
template <int parts>
struct ByTiles {
  static constexpr bool kTiles = true;
  static constexpr int64_t kParts = parts, kRowsAStep = 2, kAcross = kTiled, kBlock = kTiled;
  static constexpr int64_t kStepsAtOnce = kSome / kRowsAStep;
  static constexpr int64_t kTogether = 8;  // panels, 800 kB: they stay in the second-level cache
  static constexpr int64_t kDown = 4 * kBlock;  // columns that a thread multiplies them with
};

// Rows, and how much each counts.
struct Weighed {
  const float* rows;  // [count, d]
  int64_t count;
  const bool* valid;     // 1 or 0,
  const float* weights;  // or, where there is none, any weight
  const float* origin;   // a row that means are taken relative to: far from 0 they would be rounded

  float operator()(int64_t row) const {
    if (row >= count) return 0;
    return valid ? valid[row] : weights[row];
  }
};

// Rows that are kept, with their weights.
struct Kept {
  explicit Kept(int64_t d) : d_(d) {}

  // Room for some more, which count as kept.
  int64_t More(int64_t more) {
    if (count + more > room_) {
      room_ = std::max(2 * room_, count + more);
      auto larger = Aligned<float>(room_ * d_), heavier = Aligned<float>(room_);
      std::copy_n(rows.get(), count * d_, larger.get());
      std::copy_n(weights.get(), count, heavier.get());
      rows = std::move(larger);
      weights = std::move(heavier);
    }
    count += more;
    return count - more;
  }
  Weighed All() const { return {rows.get(), count, nullptr, weights.get(), nullptr}; }

  std::unique_ptr<float[], Free> rows, weights;
  int64_t count = 0;

 private:
  int64_t d_, room_ = 0;
};

// Some rows less their mean, zeros where they do not count, in panels of columns and by columns.
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

  // kAtOnce of the rows from `first` on. They are taken to `around` where it is given, or else to
  // their mean, which with its weight goes to row `to` of `means`.
  void Take(const Weighed& x, int64_t first, int64_t item, const float* around, Kept* means,
            int64_t to) {
    float weight[kAtOnce], total = 0;
    const float* own = nullptr;  // the first that counts
    const auto row = [&](int64_t i) { return x.rows + (first + item * kAtOnce + i) * d_; };
    for (int64_t i = 0; i < kAtOnce; ++i) {
      weight[i] = x(first + item * kAtOnce + i);
      total += weight[i];
      if (!own && weight[i] > 0) own = row(i);
    }
    if (means) means->weights[to] = total;
    const __m512 share = _mm512_set1_ps(total > 0 ? 1 / total : 0);
    for (int64_t j = 0; j < width; j += kLanes) {
      const __mmask16 there = own ? First(d_ - j) : 0;
      const __m512 pivot = _mm512_maskz_loadu_ps(there, (around ? around : own) + j);
      __m512 values[kAtOnce], sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < kAtOnce; ++i) {
        values[i] = _mm512_setzero_ps();
        if (weight[i] > 0) {
          _mm_prefetch(row(i) + j + kAhead, _MM_HINT_T0);
          values[i] = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, row(i) + j), pivot);
          sum = _mm512_fmadd_ps(values[i], _mm512_set1_ps(weight[i]), sum);
        }
      }
      const __m512 shift = around ? _mm512_setzero_ps() : _mm512_mul_ps(sum, share);
      for (int64_t i = 0; i < kAtOnce; ++i) {
        if (weight[i] > 0) {
          const __m512 root = _mm512_set1_ps(std::sqrt(weight[i]));
          values[i] = _mm512_mul_ps(_mm512_sub_ps(values[i], shift), root);
        }
      }
      if (means) {
        __m512 from = pivot;
        if (x.origin) from = _mm512_sub_ps(from, _mm512_maskz_loadu_ps(there, x.origin + j));
        _mm512_mask_storeu_ps(means->rows.get() + to * d_ + j, First(d_ - j),
                              _mm512_add_ps(from, shift));
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
void AddBlock(const Rows<ByVectors>& rows, int64_t i, int64_t panel, int64_t s, int64_t steps,
              float* to) {
  // Few are added in registers before they are added to many: both roundings stay small.
  Multiply<false, true, true>(rows.Columns(i, s), rows.kApart, rows.Panel(panel, s), steps, to,
                              rows.stride, [&](int64_t r, int64_t v, __m512 sum) {
                                const float* before = to + r * rows.stride + v * kLanes;
                                return _mm512_add_ps(sum, _mm512_load_ps(before));
                              });
}

template <int parts>
void AddBlock(const Rows<ByTiles<parts>>& rows, int64_t i, int64_t panel, int64_t s, int64_t steps,
              float* to) {
  ClearTiles();
  AddTiles<parts>(rows.Columns(i, s), rows.Panel(panel, s), steps / kTile);
  AddStored(to, rows.stride);
}

// Products that a thread adds: of the columns of some panels with those of some blocks.
struct Part {
  int64_t panel, last_panel, block, last_block;
};

template <typename How>
std::vector<Part> Parts(int64_t panels) {
  std::vector<Part> parts;
  // Those of the same panels follow one another, the longest first: threads end together.
  for (int64_t last = panels; last > 0; last -= std::min(last, How::kTogether)) {
    for (int64_t block = 0; block < last * How::kAcross; block += How::kDown) {
      parts.push_back({std::max<int64_t>(last - How::kTogether, 0), last, block,
                       std::min(block + How::kDown, last * How::kAcross)});
    }
  }
  return parts;
}

template <typename How>
void AddPart(const Rows<How>& rows, const Part& part, int64_t steps, float* sums) {
  for (int64_t s = 0; s < steps; s += How::kStepsAtOnce) {
    const int64_t some = std::min(How::kStepsAtOnce, steps - s);
    for (int64_t i = part.block; i < part.last_block; i += How::kBlock) {
      for (int64_t panel = part.panel; panel < part.last_panel; ++panel) {
        if (i >= (panel + 1) * How::kAcross) continue;
        AddBlock(rows, i, panel, s, some, sums + i * rows.stride + panel * How::kAcross);
      }
    }
  }
}

template <typename How>
class Gram {
 public:
  Gram(ffi::ThreadPool& pool, int64_t d)
      : pool_(pool), d_(d), rows_(d), parts_(Parts<How>(rows_.panels)), means_(d), of_means_(d) {
    const int64_t count = (rows_.width + How::kBlock) * rows_.stride;
    sums_ = Aligned<float>(count);
    std::memset(sums_.get(), 0, count * sizeof(float));
  }

  void Run(const Weighed& x, float* mean, float* products) {
    for (int64_t first = 0; first < x.count; first += kSome) {
      Add(x, first, nullptr, &means_);
      if (means_.count == kSome) AddMeans();
    }
    AddMeans();
    const Weighed rest = of_means_.All();
    Mean(rest, mean);
    for (int64_t first = 0; first < rest.count; first += kSome) Add(rest, first, mean, nullptr);
    for (int64_t j = 0; x.origin && j < d_; ++j) mean[j] += x.origin[j];
    ForEach(pool_, (d_ + kLanes - 1) / kLanes, [&](int64_t part) {
      const int64_t last = std::min((part + 1) * kLanes, d_);
      for (int64_t j = 0; j < d_; ++j) {
        for (int64_t i = part * kLanes; i < last; ++i) {
          products[i * d_ + j] = sums_[std::min(i, j) * rows_.stride + std::max(i, j)];
        }
      }
    });
  }

 private:
  // kSome rows of x from `first` on, as Rows::Take has them.
  void Add(const Weighed& x, int64_t first, const float* around, Kept* means) {
    const int64_t items = (std::min(kSome, x.count - first) + kAtOnce - 1) / kAtOnce;
    const int64_t to = means ? means->More(items) : 0;
    ForEach(pool_, items,
            [&](int64_t item) { rows_.Take(x, first, item, around, means, to + item); });
    const int64_t steps = items * kAtOnce / How::kRowsAStep;
    ForEach(pool_, parts_.size(), [&](int64_t part) {
      [[maybe_unused]] const std::conditional_t<How::kTiles, FullTiles, int> tiles{};
      AddPart(rows_, parts_[part], steps, sums_.get());
    });
  }

  void AddMeans() {
    if (means_.count) Add(means_.All(), 0, nullptr, &of_means_);
    means_.count = 0;
  }

  void Mean(const Weighed& x, float* mean) const {
    std::vector<double> sum(d_);
    double total = 0;
    for (int64_t i = 0; i < x.count; ++i) {
      total += x(i);
      for (int64_t j = 0; x(i) > 0 && j < d_; ++j) {
        sum[j] += static_cast<double>(x(i)) * x.rows[i * d_ + j];
      }
    }
    for (int64_t j = 0; j < d_; ++j) mean[j] = total > 0 ? sum[j] / total : 0;
  }

  ffi::ThreadPool& pool_;
  const int64_t d_;
  Rows<How> rows_;
  const std::vector<Part> parts_;
  Kept means_, of_means_;  // of rows, and of these: one of 1,024 rows each
  std::unique_ptr<float[], Free> sums_;
};

template <typename How>
void GramBy(ffi::ThreadPool& pool, const Weighed& x, int64_t d, float* mean, float* products) {
  Gram<How>(pool, d).Run(x, mean, products);
}

ffi::Error MeanAndGram(ffi::ThreadPool pool, Matrix x, Mask valid, ffi::Result<Floats> mean,
                       ffi::Result<Matrix> products, int64_t parts) {
  const auto gram = !HasTiles()  ? GramBy<ByVectors>
                    : parts == 1 ? GramBy<ByTiles<1>>
                    : parts == 2 ? GramBy<ByTiles<2>>
                                 : GramBy<ByTiles<3>>;
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1];
  const int64_t first =
      std::find(valid.typed_data(), valid.typed_data() + n, true) - valid.typed_data();
  const float* origin = first < n ? x.typed_data() + first * d : nullptr;
  gram(pool, {x.typed_data(), n, valid.typed_data(), nullptr, origin}, d, mean->typed_data(),
       products->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_gram, jsel::MeanAndGram,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Mask>()
                                  .Ret<jsel::Floats>()
                                  .Ret<jsel::Matrix>()
                                  .Attr<int64_t>("parts"));
