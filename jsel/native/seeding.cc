// Squared distances to one more center, of rows that do not fit the cache.
#include <immintrin.h>

#include "parallel.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kFloatsAnItem = 1 << 16;

inline float Distance2(const float* a, const float* b, int64_t d) {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < d; i += kLanes) {
    const __mmask16 there = First(d - i);
    const __m512 off =
        _mm512_sub_ps(_mm512_maskz_loadu_ps(there, a + i), _mm512_maskz_loadu_ps(there, b + i));
    auto& part = sum[i / kLanes % 2];
    part = _mm512_fmadd_ps(off, off, part);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

// The lesser of what is `nearest` and the squared distance to the center. From the last row to the
// first where `backward`: every other pass then begins with the rows that the one before it ended
// with, which are still in the cache.
ffi::Error Closer(ffi::ThreadPool pool, Matrix x, Floats center, Floats nearest, Scalar backward,
                  ffi::Result<Floats> closer) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1];
  const int64_t rows = std::max<int64_t>(kFloatsAnItem / d, 1), items = (n + rows - 1) / rows;
  const bool turned = *backward.typed_data();
  ForEach(pool, items, [&](int64_t item) {
    const int64_t at = turned ? items - 1 - item : item;
    for (int64_t i = at * rows; i < std::min((at + 1) * rows, n); ++i) {
      const float distance2 = Distance2(x.typed_data() + i * d, center.typed_data(), d);
      const float before = nearest.typed_data()[i];
      // A NaN of either stays, as in XLA's minimum.
      closer->typed_data()[i] = distance2 >= before || before != before ? before : distance2;
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_closer, jsel::Closer,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Scalar>()
                                  .Ret<jsel::Floats>());
