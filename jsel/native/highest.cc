// The k highest of keys that are given, and of scores; and those of keys as a mask.
#include "search.h"

namespace jsel {
namespace {

// Keys as they are.
struct Given {
  const int32_t* keys;

  void Fetch(int64_t i) const { _mm_prefetch(keys + i, _MM_HINT_T0); }
  __m512i operator()(int64_t i, __mmask16 there) const {
    return _mm512_maskz_loadu_epi32(there, keys + i);
  }
  void Sample(int64_t i, int64_t stride, int32_t* to) const {
    for (int64_t j = 0; j < kLanes; ++j) to[j] = keys[(i + j) * stride];
  }
};

// Those of scores less what their usage costs, each rounded once; subnormal differences are 0.
struct Penalized {
  const float* scores;
  const int32_t* usage;  // none, and so with the next, where nothing is subtracted
  float penalty;
  const bool* valid;

  void Fetch(int64_t i) const {
    _mm_prefetch(scores + i, _MM_HINT_T0);
    if (usage) _mm_prefetch(usage + i, _MM_HINT_T0);
  }
  __m512i operator()(int64_t i, __mmask16 there) const {
    __m512 score = _mm512_maskz_loadu_ps(there, scores + i);
    if (usage) {
      const __m512 uses = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(there, usage + i));
      score = _mm512_sub_ps(score, _mm512_mul_ps(_mm512_set1_ps(penalty), uses));
      const __mmask16 small = _mm512_cmp_ps_mask(
          _mm512_abs_ps(score), _mm512_set1_ps(std::numeric_limits<float>::min()), _CMP_LT_OQ);
      score = _mm512_mask_mov_ps(score, small, _mm512_setzero_ps());
    }
    const __m512i keys = KeysOf(score);
    if (!valid) return keys;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, valid + i);
    return _mm512_mask_mov_epi32(_mm512_set1_epi32(kLowest), _mm_test_epi8_mask(bytes, bytes),
                                 keys);
  }
  void Sample(int64_t i, int64_t stride, int32_t* to) const {
    for (int64_t j = 0; j < kLanes; ++j) {
      to[j] = _mm_cvtsi128_si32(_mm512_castsi512_si128((*this)((i + j) * stride, 1)));
    }
  }
};

template <typename Keys>
ffi::Error Write(ffi::ThreadPool& pool, const Keys& keys, int64_t n, Indices& top, Indices& ids) {
  const int64_t k = top.element_count();
  const Search search(pool, keys, n, k);
  search.ForTaken(pool, [&](int64_t place, int32_t key, int32_t row) {
    top.typed_data()[place] = key;
    ids.typed_data()[place] = row;
  });
  std::fill(top.typed_data() + search.count(), top.typed_data() + k, kLowest);
  std::fill(ids.typed_data() + search.count(), ids.typed_data() + k, -1);
  return ffi::Error::Success();
}

ffi::Error Highest(ffi::ThreadPool pool, Indices keys, ffi::Result<Indices> top,
                   ffi::Result<Indices> ids) {
  return Write(pool, Given{keys.typed_data()}, keys.element_count(), *top, *ids);
}

// The same of scores; usage and valid may be empty.
ffi::Error HighestScores(ffi::ThreadPool pool, Floats scores, Indices usage, Floats penalty,
                         Mask valid, ffi::Result<Indices> top, ffi::Result<Indices> ids) {
  const bool used = usage.element_count(), all = !valid.element_count();
  const Penalized keys{scores.typed_data(), used ? usage.typed_data() : nullptr,
                       *penalty.typed_data(), all ? nullptr : valid.typed_data()};
  return Write(pool, keys, scores.element_count(), *top, *ids);
}

// The same rows as a mask, of a k that is known when it is called.
ffi::Error HighestMask(ffi::ThreadPool pool, Indices keys, Scalar k, ffi::Result<Mask> mask) {
  const int64_t n = keys.element_count();
  const int64_t wanted = std::clamp<int64_t>(*k.typed_data(), 0, n);
  std::memset(mask->typed_data(), 0, n);
  const Search search(pool, Given{keys.typed_data()}, n, wanted, kSharedInStep);
  search.ForTaken(pool, [&](int64_t, int32_t, int32_t row) { mask->typed_data()[row] = true; });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest, jsel::Highest,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Indices>()
                                  .Ret<jsel::Indices>()
                                  .Ret<jsel::Indices>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest_scores, jsel::HighestScores,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Mask>()
                                  .Ret<jsel::Indices>()
                                  .Ret<jsel::Indices>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_highest_mask, jsel::HighestMask,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Scalar>()
                                  .Ret<jsel::Mask>());
