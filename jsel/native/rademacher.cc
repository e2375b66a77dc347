// Rows times a matrix of random signs, by looking sums up.
//
// Four columns of a row have 16 sums with signs, which are one vector. Which of them a column of
// the result takes is a number of four bits of the signs: one permutation looks 16 up, where
// products would be 64 multiplications. Sums are those of float32 additions: nothing is rounded
// first. Processors with tiles multiply: a float is the sum of three bfloat16, a sign is one, so
// that products are exact, and three of them take less time than the permutation. Fewer parts are
// those of a lower precision.
#include <immintrin.h>

#include <cstring>

#include "parallel.h"
#include "products.h"
#include "tiles.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kGroups = 96;  // of four columns of x, whose places take 24 kB for kColumns
constexpr int64_t kRowsAnItem = 96;

// The sums of four columns of a row with signs: bit b of the place is set where column b is
// subtracted.
inline __m512 Sums(const float* x) {
  const __m512 ones = _mm512_set1_ps(1.0f);
  const auto signs = [&](__mmask16 negative) {
    return _mm512_mask_sub_ps(ones, negative, _mm512_setzero_ps(), ones);
  };
  __m512 sum = _mm512_mul_ps(_mm512_set1_ps(x[0]), signs(0xaaaa));
  sum = _mm512_fmadd_ps(_mm512_set1_ps(x[1]), signs(0xcccc), sum);
  sum = _mm512_fmadd_ps(_mm512_set1_ps(x[2]), signs(0xf0f0), sum);
  return _mm512_fmadd_ps(_mm512_set1_ps(x[3]), signs(0xff00), sum);
}

// Adds the looked up sums of `groups` groups to kRows rows of kColumns columns.
__attribute__((noinline)) void Add(const float* tables, const int32_t* places, int64_t groups,
                                   float* total) {
  __m512 sum[kRows][kVectors];
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v) {
      sum[r][v] = _mm512_load_ps(total + r * kColumns + v * kLanes);
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    __m512i place[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      place[v] = _mm512_load_si512(places + g * kColumns + v * kLanes);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      const __m512 table = _mm512_load_ps(tables + (g * kRows + r) * kLanes);
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_add_ps(sum[r][v], _mm512_permutexvar_ps(place[v], table));
      }
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(total + r * kColumns + v * kLanes, sum[r][v]);
    }
  }
}

// Four bits of the signs of each column, of one group.
void Places(const uint32_t* words, int64_t width, int64_t rows, int64_t dim, int32_t* places) {
  for (int64_t j = 0; j < dim; ++j) {
    places[j] = 0;
    for (int64_t b = 0; b < rows; ++b) {
      places[j] |= (words[b * width + j / 32] >> (j % 32) & 1) << b;
    }
  }
}

// The tables of kRows rows, [groups, kRows]; what is beyond `rows` and `columns` is zero.
void Tables(const float* x, int64_t stride, int64_t rows, int64_t columns, float* tables) {
  for (int64_t r = 0; r < kRows; ++r) {
    float* to = tables + r * kLanes;
    int64_t column = 0;
    for (; r < rows && column + 4 <= columns; column += 4, to += kRows * kLanes) {
      _mm512_store_ps(to, Sums(x + r * stride + column));
    }
    for (; column < columns; column += 4, to += kRows * kLanes) {
      float four[4] = {0, 0, 0, 0};
      if (r < rows) std::memcpy(four, x + r * stride + column, (columns - column) * sizeof(float));
      _mm512_store_ps(to, Sums(four));
    }
  }
}

constexpr int64_t kChunk = 512;  // columns of x: their signs for a panel take 32 kB
constexpr int64_t kRowsOfTiles = 128;

// Signs of one panel from row `first` on, `groups` times 32 rows; what is beyond `size` is +1.
void SignTiles(const uint32_t* words, int64_t width, int64_t size, int64_t first, int64_t groups,
               uint32_t* tiles) {
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  const __m512i low = _mm512_set1_epi32(0x8000), high = _mm512_slli_epi32(low, 16);
  const auto word = [&](int64_t row) { return row < size ? words[row * width] : 0; };
  for (int64_t s = 0; s < groups * kTile; ++s) {
    const uint32_t one = word(first + 2 * s), two = word(first + 2 * s + 1);
    for (int64_t half = 0; half < 2; ++half) {
      const auto mask = [&](uint32_t bits) { return static_cast<__mmask16>(bits >> 16 * half); };
      __m512i pairs = _mm512_mask_or_epi32(ones, mask(one), ones, low);
      pairs = _mm512_mask_or_epi32(pairs, mask(two), pairs, high);
      _mm512_store_si512(tiles + (s / kTile * 2 + half) * kTileWords + s % kTile * kTile, pairs);
    }
  }
}

template <int kParts>
void ByTiles(ffi::ThreadPool& pool, const Matrix& x, const Matrix& total, const Words& words,
             int64_t start, Matrix& y) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1], dim = total.dimensions()[1];
  const int64_t size = words.dimensions()[0], width = words.dimensions()[1];
  const int64_t panels = (dim + kTiled - 1) / kTiled, stride = panels * kTiled + kLanes;
  const int64_t most = (std::min(size, kChunk) + 31) / 32;  // groups of a chunk
  const auto begin = [&] {
    return [&, rows = Aligned<uint32_t>(kRowsOfTiles / kTiled * most * kParts * kOperand),
            signs = Aligned<uint32_t>(most * kOperand),
            sums = Aligned<float>(kRowsOfTiles * stride)](int64_t item) {
      const FullTiles tiles;
      const int64_t first_row = item * kRowsOfTiles;
      const int64_t count = std::min(kRowsOfTiles, n - first_row);
      std::memset(sums.get(), 0, kRowsOfTiles * stride * sizeof(float));
      for (int64_t first = 0; first < size; first += kChunk) {
        const int64_t some = std::min(kChunk, size - first), groups = (some + 31) / 32;
        const int64_t block = groups * kParts * kOperand;
        for (int64_t r = 0; r < count; ++r) {
          const float* from = x.typed_data() + (first_row + r) * d + start + first;
          Convert<kParts, false>(from, nullptr, some, groups * 32, {kParts * kOperand, kOperand},
                                 rows.get() + r / kTiled * block + r % kTiled * kTile);
        }
        for (int64_t panel = 0; panel < panels; ++panel) {
          SignTiles(words.typed_data() + panel, width, size, first, groups, signs.get());
          for (int64_t r = 0; r < count; r += kTiled) {
            ClearTiles();
            AddExactly<kParts>(rows.get() + r / kTiled * block, signs.get(), groups);
            AddStored(sums.get() + r * stride + panel * kTiled, stride);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = (first_row + r) * dim;
        for (int64_t j = 0; j < dim; ++j) {
          y.typed_data()[at + j] = total.typed_data()[at + j] + sums[r * stride + j];
        }
      }
    };
  };
  ForEachBy(pool, (n + kRowsOfTiles - 1) / kRowsOfTiles, begin);
}

// total + x[:, start : start + size] times the signs, where size is the words' rows.
ffi::Error Rademacher(ffi::ThreadPool pool, Matrix x, Matrix total, Words words, Scalar start,
                      ffi::Result<Matrix> y, int64_t parts) {
  if (HasTiles()) {
    const auto by_tiles = parts == 1 ? ByTiles<1> : parts == 2 ? ByTiles<2> : ByTiles<3>;
    by_tiles(pool, x, total, words, *start.typed_data(), *y);
    return ffi::Error::Success();
  }
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1], dim = total.dimensions()[1];
  const int64_t size = words.dimensions()[0], width = words.dimensions()[1];
  const int64_t groups = (size + 3) / 4, tiles = (dim + kColumns - 1) / kColumns;
  // [tiles, groups, kColumns]
  const auto places = Aligned<int32_t>(tiles * groups * kColumns);
  ForEach(pool, groups, [&](int64_t group) {
    const uint32_t* from = words.typed_data() + 4 * group * width;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      Places(from + tile * kColumns / 32, width, std::min<int64_t>(4, size - 4 * group),
             std::min(kColumns, dim - tile * kColumns),
             places.get() + (tile * groups + group) * kColumns);
    }
  });
  const float* from = x.typed_data() + *start.typed_data();
  const auto begin = [&] {
    return [&, tables = Aligned<float>(kGroups * kRowsAnItem * kLanes),
            sums = Aligned<float>(tiles * kRowsAnItem * kColumns)](int64_t item) {
      const int64_t first_row = item * kRowsAnItem;
      const int64_t rows = std::min(kRowsAnItem, n - first_row);
      const int64_t parts = (rows + kRows - 1) / kRows;
      std::memset(sums.get(), 0, tiles * kRowsAnItem * kColumns * sizeof(float));
      for (int64_t first = 0; first < groups; first += kGroups) {
        const int64_t some = std::min(kGroups, groups - first);
        for (int64_t part = 0; part < parts; ++part) {
          Tables(from + (first_row + part * kRows) * d + 4 * first, d, rows - part * kRows,
                 std::min(4 * some, size - 4 * first),
                 tables.get() + part * kGroups * kRows * kLanes);
        }
        for (int64_t tile = 0; tile < tiles; ++tile) {
          for (int64_t part = 0; part < parts; ++part) {
            Add(tables.get() + part * kGroups * kRows * kLanes,
                places.get() + (tile * groups + first) * kColumns, some,
                sums.get() + (tile * kRowsAnItem + part * kRows) * kColumns);
          }
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        const float* before = total.typed_data() + (first_row + r) * dim;
        float* after = y->typed_data() + (first_row + r) * dim;
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const float* sum = sums.get() + (tile * kRowsAnItem + r) * kColumns;
          for (int64_t j = tile * kColumns; j < std::min((tile + 1) * kColumns, dim); ++j) {
            after[j] = before[j] + sum[j - tile * kColumns];
          }
        }
      }
    };
  };
  ForEachBy(pool, (n + kRowsAnItem - 1) / kRowsAnItem, begin);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_rademacher, jsel::Rademacher,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Words>()
                                  .Arg<jsel::Scalar>()
                                  .Ret<jsel::Matrix>()
                                  .Attr<int64_t>("parts"));
