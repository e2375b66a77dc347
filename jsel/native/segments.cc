// Sums of rows by label in integers of 64 bits: exact, and so in any order.
#include <immintrin.h>

#include <cstring>

#include "parallel.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kBlock = 64;  // columns that are added up by one thread
constexpr int64_t kAhead = 16;  // rows that are fetched before they are needed
constexpr int64_t kHalf = 8;    // integers of 64 bits in a vector

// The limbs of 16, 16 and 32 bits of sums of 2^16 * weight * x * scale, which is rounded in two
// steps as the loop that this stands in for does.
ffi::Error SegmentSum(ffi::ThreadPool pool, Matrix x, Indices labels, Floats weights, Floats scale,
                      ffi::Result<Integers> ones, ffi::Result<Integers> middle,
                      ffi::Result<Integers> top) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1], count = ones->dimensions()[0];
  ForEach(pool, (d + kBlock - 1) / kBlock, [&](int64_t block) {
    const auto sums = Aligned<int64_t>(count * kBlock);
    std::memset(sums.get(), 0, count * kBlock * sizeof(int64_t));
    const int64_t first = block * kBlock, columns = std::min(kBlock, d - first);
    __m512 scales[kBlock / kLanes];
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      scales[j / kLanes] =
          _mm512_maskz_loadu_ps(First(columns - j), scale.typed_data() + first + j);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) {
        const float* later = x.typed_data() + (i + kAhead) * d + first;
        for (int64_t j = 0; j < columns; j += kLanes) _mm_prefetch(later + j, _MM_HINT_T0);
      }
      const int32_t label = labels.typed_data()[i];
      if (label < 0 || label >= count) continue;
      const __m512 weight = _mm512_set1_ps(weights.typed_data()[i]);
      const float* row = x.typed_data() + i * d + first;
      int64_t* sum = sums.get() + label * kBlock;
      for (int64_t j = 0; j < columns; j += kLanes) {
        __m512 value = _mm512_maskz_loadu_ps(First(columns - j), row + j);
        value = _mm512_mul_ps(_mm512_mul_ps(weight, value), scales[j / kLanes]);
        const __m512 high = _mm512_roundscale_ps(value, 0);
        const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(value, high), _mm512_set1_ps(65536.0f));
        const __m512i highs = _mm512_cvtps_epi32(high), lows = _mm512_cvtps_epi32(rest);
        const auto add = [](int64_t* to, __m256i high, __m256i low) {
          const __m512i wide = _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 16),
                                                _mm512_cvtepi32_epi64(low));
          _mm512_store_si512(to, _mm512_add_epi64(_mm512_load_si512(to), wide));
        };
        add(sum + j, _mm512_castsi512_si256(highs), _mm512_castsi512_si256(lows));
        add(sum + j + kHalf, _mm512_extracti64x4_epi64(highs, 1),
            _mm512_extracti64x4_epi64(lows, 1));
      }
    }
    for (int64_t label = 0; label < count; ++label) {
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t sum = sums[label * kBlock + j], at = label * d + first + j;
        ones->typed_data()[at] = sum & 0xffff;
        middle->typed_data()[at] = sum >> 16 & 0xffff;
        top->typed_data()[at] = static_cast<int32_t>(sum >> 32);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_segment_sum, jsel::SegmentSum,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Floats>()
                                  .Ret<jsel::Integers>()
                                  .Ret<jsel::Integers>()
                                  .Ret<jsel::Integers>());
