// The subsampled randomized Hadamard transform of rows, each in the first-level cache.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "parallel.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kFloatsAnItem = 1 << 18;

// The Hadamard transform of the 16 floats of a vector.
inline __m512 WithinVector(__m512 v) {
  const __m512 ones = _mm512_set1_ps(1.0f);
  const auto signs = [&](__mmask16 negative) {
    return _mm512_mask_sub_ps(ones, negative, _mm512_setzero_ps(), ones);
  };
  v = _mm512_fmadd_ps(v, signs(0xaaaa), _mm512_permute_ps(v, 0xb1));
  v = _mm512_fmadd_ps(v, signs(0xcccc), _mm512_permute_ps(v, 0x4e));
  v = _mm512_fmadd_ps(v, signs(0xf0f0), _mm512_shuffle_f32x4(v, v, 0xb1));
  return _mm512_fmadd_ps(v, signs(0xff00), _mm512_shuffle_f32x4(v, v, 0x4e));
}

// Butterflies of kRadix vectors that lie `stride` vectors apart.
template <int kRadix, bool kFirst>
inline void Butterflies(float* row, int64_t vectors, int64_t stride) {
  for (int64_t start = 0; start < vectors; start += kRadix * stride) {
    for (int64_t at = start; at < start + stride; ++at) {
      __m512 v[kRadix];
      for (int i = 0; i < kRadix; ++i) {
        v[i] = _mm512_load_ps(row + (at + i * stride) * kLanes);
        if (kFirst) v[i] = WithinVector(v[i]);
      }
      for (int half = 1; half < kRadix; half *= 2) {
        for (int i = 0; i < kRadix; ++i) {
          if (i & half) continue;
          const __m512 a = v[i], b = v[i + half];
          v[i] = _mm512_add_ps(a, b);
          v[i + half] = _mm512_sub_ps(a, b);
        }
      }
      for (int i = 0; i < kRadix; ++i) {
        _mm512_store_ps(row + (at + i * stride) * kLanes, v[i]);
      }
    }
  }
}

template <bool kFirst>
inline int64_t Pass(float* row, int64_t vectors, int64_t stride) {
  const int64_t left = vectors / stride;
  if (left >= 16) return Butterflies<16, kFirst>(row, vectors, stride), 16;
  if (left >= 8) return Butterflies<8, kFirst>(row, vectors, stride), 8;
  if (left >= 4) return Butterflies<4, kFirst>(row, vectors, stride), 4;
  if (left >= 2) return Butterflies<2, kFirst>(row, vectors, stride), 2;
  return Butterflies<1, kFirst>(row, vectors, stride), 1;
}

void Transform(float* row, int64_t size) {
  const int64_t vectors = size / kLanes;
  for (int64_t stride = Pass<true>(row, vectors, 1); stride < vectors;) {
    stride *= Pass<false>(row, vectors, stride);
  }
}

ffi::Error Srht(ffi::ThreadPool pool, Matrix x, Floats signs, Indices coordinates,
                ffi::Result<Matrix> y, int64_t size) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1], dim = coordinates.element_count();
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  const int64_t rows = std::max<int64_t>(kFloatsAnItem / size, 1);
  const auto start = [&] {
    return [&, memory = Aligned<float>(size)](int64_t item) {
      float* row = memory.get();
      const int32_t* at = coordinates.typed_data();
      for (int64_t i = item * rows; i < std::min((item + 1) * rows, n); ++i) {
        const float* given = x.typed_data() + i * d;
        const float* sign = signs.typed_data();
        for (int64_t j = 0; j < d; ++j) row[j] = given[j] * sign[j];
        std::memset(row + d, 0, (size - d) * sizeof(float));
        Transform(row, size);
        float* out = y->typed_data() + i * dim;
        for (int64_t j = 0; j < dim; ++j) out[j] = row[at[j]] * scale;
      }
    };
  };
  ForEachBy(pool, (n + rows - 1) / rows, start);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_srht, jsel::Srht,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Indices>()
                                  .Ret<jsel::Matrix>()
                                  .Attr<int64_t>("size"));
