// A mask as bits, in tiles of 128 rows, and how many are set up to the end of each tile.
#include <immintrin.h>

#include "parallel.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kRows = 32, kWords = 4;  // rows of a word, words of a tile
constexpr int64_t kShared = 1 << 20;       // rows of which more than one thread takes some

// Each leaf of rows begins with a tile of its own, and its last may be short.
ffi::Error CountTiles(ffi::ThreadPool pool, Mask mask, ffi::Result<Bits> words,
                      ffi::Result<Indices> ends, int64_t leaves) {
  const int64_t rows = mask.element_count(), leaf = rows / leaves;
  const int64_t tiles = ends->element_count() / leaves;
  const auto cut = [&](int64_t at) {
    const bool* bytes = mask.typed_data() + at * leaf;
    uint32_t* word = words->typed_data() + at * tiles * kWords;
    int32_t* end = ends->typed_data() + at * tiles;
    int32_t count = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t i = 0; i < kWords; ++i) {
        const int64_t first = (tile * kWords + i) * kRows;
        const int64_t left = std::clamp<int64_t>(leaf - first, 0, kRows);
        const __mmask32 there = left == kRows ? ~0u : (1u << left) - 1;
        const __m256i some = _mm256_maskz_loadu_epi8(there, bytes + first);
        *word = _mm256_test_epi8_mask(some, some);
        count += __builtin_popcount(*word++);
      }
      *end++ = count;
    }
  };
  ForEach(pool, leaves, cut, rows >= kShared);
  int32_t before = 0;
  for (int64_t at = 0; at < leaves; ++at) {
    int32_t* end = ends->typed_data() + at * tiles;
    for (int64_t tile = 0; tile < tiles; ++tile) end[tile] += before;
    before = end[tiles - 1];
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_count_tiles, jsel::CountTiles,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Mask>()
                                  .Ret<jsel::Bits>()
                                  .Ret<jsel::Indices>()
                                  .Attr<int64_t>("leaves"));
