// A turn of a rotation: debts grow, and the rows of the highest, by lot among near ones, pay.
#include "search.h"

namespace jsel {
namespace {

constexpr int64_t kBlock = 256;  // rows

// `row_lot` of jsel/kernels/random.py, a keyed hash of the rows' ids: the highest bits of it.
class Lots {
 public:
  Lots(const uint32_t* words, int bits)
      : first_(_mm512_set1_epi32(words[0])),
        second_(_mm512_set1_epi32(words[1])),
        shift_(_mm_cvtsi32_si128(32 - bits)) {}

  __m512i operator()(__m512i ids) const {
    return _mm512_srl_epi32(Stirred(Stirred(ids, first_), second_), shift_);
  }

 private:
  static __m512i Stirred(__m512i x, __m512i word) {
    const auto mixed = [](__m512i x, int by) {
      return _mm512_xor_si512(x, _mm512_srli_epi32(x, by));
    };
    x = mixed(_mm512_xor_si512(x, word), 16);
    x = mixed(_mm512_mullo_epi32(x, _mm512_set1_epi32(0x7FEB352D)), 15);
    return mixed(_mm512_mullo_epi32(x, _mm512_set1_epi32(0x846CA68B)), 16);
  }

  const __m512i first_, second_;
  const __m128i shift_;
};

// What rows are owed with their shares, and a lottery of less than a unit.
struct Drawn {
  const int32_t* share;
  int32_t* owed;  // without the share until a row is first looked at
  const bool* valid;
  const uint32_t* words;
  int bits;                  // of a unit
  std::vector<char>& grown;  // by items: whether `owed` has the share

  // Rows side by side, for the memory's sake: it is their lots that tell them apart.
  void Sample(int64_t i, int64_t stride, int32_t* to) const {
    const int64_t first = i * stride;
    const __m128i bytes = _mm_loadu_si128((const __m128i*)(valid + first));
    const __m512i debts =
        _mm512_add_epi32(_mm512_loadu_si512(owed + first), _mm512_loadu_si512(share + first));
    const __m512i ids = _mm512_add_epi32(Lanes(), _mm512_set1_epi32(first));
    const __m512i keys = _mm512_add_epi32(debts, Lots(words, bits)(ids));
    _mm512_storeu_si512(to, _mm512_mask_mov_epi32(_mm512_set1_epi32(kLowest),
                                                  _mm_test_epi8_mask(bytes, bytes), keys));
  }
  void Grow(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) owed[i] += share[i];
  }
};

// Of many rows the debt alone says that no lot will do. Where those are most of a block, the others
// are packed before their lots are drawn.
Candidates Reaching(const Drawn& keys, int64_t first, int64_t last, int32_t least) {
  const bool grown = std::exchange(keys.grown[first / kRowsAnItem], true);
  Candidates found{Aligned<int32_t>(last - first + kLanes),
                   Aligned<int32_t>(last - first + kLanes)};
  const int64_t lot = (int64_t{1} << keys.bits) - 1;
  const __m512i enough = _mm512_set1_epi32(least);
  const __m512i bound = _mm512_set1_epi32(std::max<int64_t>(least - lot, kLowest));
  const Lots lots(keys.words, keys.bits);
  int64_t count = 0;
  const auto draw = [&](__mmask16 there, __m512i debts, __m512i ids) {
    const __m512i key = _mm512_add_epi32(debts, lots(ids));
    const __mmask16 mask = _mm512_mask_cmpge_epi32_mask(there, key, enough);
    Pack(mask, ids, found.ids.get() + count);
    count += Pack(mask, key, found.keys.get() + count);
  };
  for (int64_t block = first; block < last; block += kBlock) {
    const int64_t end = std::min(block + kBlock, last);
    if (!grown) keys.Grow(block, end);
    __mmask16 near[kBlock / kLanes];
    int64_t of_block = 0;
    for (int64_t i = block; i < end; i += kLanes) {
      const __m128i bytes = _mm_maskz_loadu_epi8(First(end - i), keys.valid + i);
      const __mmask16 there = _mm_test_epi8_mask(bytes, bytes);
      const __m512i debts = _mm512_maskz_loadu_epi32(there, keys.owed + i);
      const __mmask16 mask = _mm512_mask_cmpge_epi32_mask(there, debts, bound);
      of_block += __builtin_popcount(near[(i - block) / kLanes] = mask);
    }
    if (2 * of_block > kBlock) {
      for (int64_t i = block; i < end; i += kLanes) {
        const __mmask16 there = near[(i - block) / kLanes];
        draw(there, _mm512_maskz_loadu_epi32(there, keys.owed + i),
             _mm512_add_epi32(Lanes(), _mm512_set1_epi32(i)));
      }
      continue;
    }
    int32_t ids[kBlock + kLanes], *to = ids;
    for (int64_t i = block; i < end; i += kLanes) {
      to += Pack(near[(i - block) / kLanes], _mm512_add_epi32(Lanes(), _mm512_set1_epi32(i)), to);
    }
    for (int64_t i = 0; i < of_block; i += kLanes) {
      const __mmask16 there = First(of_block - i);
      const __m512i some = _mm512_maskz_loadu_epi32(there, ids + i);
      draw(there, _mm512_mask_i32gather_epi32(some, there, some, keys.owed, 4), some);
    }
  }
  found.count = count;
  return found;
}

// debt and taken are those from before, in the memory of the results; `bits` are those of a unit.
ffi::Error Rotate(ffi::ThreadPool pool, Indices, Indices share, Indices, Mask valid, Bits words,
                  Scalar k, ffi::Result<Mask> mask, ffi::Result<Indices> debt,
                  ffi::Result<Indices> taken, int64_t bits) {
  const int64_t n = share.element_count();
  int32_t *owed = debt->typed_data(), *times = taken->typed_data();
  std::vector<char> grown(n / kRowsAnItem + 1);
  const Drawn keys{share.typed_data(),     owed, valid.typed_data(), words.typed_data(),
                   static_cast<int>(bits), grown};
  const Search search(pool, keys, n, std::clamp<int64_t>(*k.typed_data(), 0, n), kSharedInStep);
  std::memset(mask->typed_data(), 0, n);
  search.ForTaken(pool, [&](int64_t, int32_t, int32_t row) {
    mask->typed_data()[row] = true;
    owed[row] -= 1 << bits;
    ++times[row];
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_rotate, jsel::Rotate,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Indices>()
                                  .Arg<jsel::Mask>()
                                  .Arg<jsel::Bits>()
                                  .Arg<jsel::Scalar>()
                                  .Ret<jsel::Mask>()
                                  .Ret<jsel::Indices>()
                                  .Ret<jsel::Indices>()
                                  .Attr<int64_t>("bits"));
