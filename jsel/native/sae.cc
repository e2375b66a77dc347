// A TopK sparse autoencoder: codes, sums of k weighted rows for each row, and their gradients.
#include <immintrin.h>

#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "products.h"
#include "row_search.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kSums = 8;  // vectors that are added up in registers at a time
constexpr int64_t kRowsAnItem = 16;
constexpr int64_t kLatentsAnItem = 32;

// to[:columns] = sum over j of scale(j) * row(j)[:columns]
template <typename Scale, typename RowOf>
inline void Combine(int64_t count, int64_t columns, const Scale& scale, const RowOf& row,
                    float* to) {
  for (int64_t first = 0; first < columns; first += kSums * kLanes) {
    __m512 sum[kSums];
    __mmask16 there[kSums];
    for (int64_t v = 0; v < kSums; ++v) {
      sum[v] = _mm512_setzero_ps();
      there[v] = First(columns - first - v * kLanes);
    }
    for (int64_t j = 0; j < count; ++j) {
      const __m512 factor = _mm512_set1_ps(scale(j));
      const float* from = row(j) + first;
      for (int64_t v = 0; v < kSums; ++v) {
        sum[v] =
            _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(there[v], from + v * kLanes), sum[v]);
      }
    }
    for (int64_t v = 0; v < kSums; ++v) {
      _mm512_mask_storeu_ps(to + first + v * kLanes, there[v], sum[v]);
    }
  }
}

// The k largest latents of each row: x times the encoder, and the bias.
template <int kParts>
void Encode(ffi::ThreadPool& pool, const Matrix& x, const Matrix& encoder, const Floats& bias,
            Matrix& code, Integers& index) {
  const int64_t n = x.dimensions()[0], k = code.dimensions()[1];
  const Panels<kParts> panels(pool, encoder);
  const auto biases = OfColumns(bias, panels, 0);
  const int64_t some = panels.RowsAnItem();
  const auto start = [&] {
    return [&, latents = Aligned<float>(some * panels.stride),
            rows = Aligned<uint32_t>(some * panels.apart),
            search = RowSearch(panels.count, k)](int64_t item) mutable {
      const int64_t first = item * some, count = std::min(some, n - first);
      ConvertRows(x, nullptr, first, count, panels, rows.get());
      Multiply(rows.get(), count, panels, latents.get(), [&](int64_t, int64_t j, __m512 product) {
        return _mm512_add_ps(product, _mm512_load_ps(biases.get() + j));
      });
      for (int64_t r = 0; r < count; ++r) {
        search.Take(latents.get() + r * panels.stride, code.typed_data() + (first + r) * k,
                    index.typed_data() + (first + r) * k);
      }
    };
  };
  ForEachBy(pool, (n + some - 1) / some, start);
}

ffi::Error Codes(ffi::ThreadPool pool, Matrix x, Matrix encoder, Floats bias,
                 ffi::Result<Matrix> code, ffi::Result<Integers> index, bool narrow) {
  const auto encode = narrow ? Encode<1> : HasTiles() ? Encode<3> : Encode<0>;
  encode(pool, x, encoder, bias, *code, *index);
  return ffi::Error::Success();
}

ffi::Error Decode(ffi::ThreadPool pool, Matrix code, Integers index, Matrix decoder,
                  ffi::Result<Matrix> output) {
  const int64_t n = code.dimensions()[0], k = code.dimensions()[1];
  const int64_t latents = decoder.dimensions()[0], d = decoder.dimensions()[1];
  ForEach(pool, (n + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item) {
    for (int64_t i = item * kRowsAnItem; i < std::min((item + 1) * kRowsAnItem, n); ++i) {
      const int32_t* latent = index.typed_data() + i * k;
      const auto row = [&](int64_t j) {
        const int64_t at = std::clamp<int64_t>(latent[j], 0, latents - 1);
        return decoder.typed_data() + at * d;
      };
      const auto scale = [&](int64_t j) { return code.typed_data()[i * k + j]; };
      Combine(k, d, scale, row, output->typed_data() + i * d);
    }
  });
  return ffi::Error::Success();
}

// Of each latent the rows that have it above 0, in their order.
struct Uses {
  std::vector<int32_t> start, place;  // of each latent; of each use, within the codes
};

Uses UsesOf(const Matrix& code, const Integers& index, int64_t latents) {
  const int64_t count = code.element_count();
  const float* value = code.typed_data();
  const int32_t* latent = index.typed_data();
  const auto counts = [&](int64_t i) {
    return value[i] > 0 && latent[i] >= 0 && latent[i] < latents;
  };
  Uses uses{std::vector<int32_t>(latents + 1), {}};
  for (int64_t i = 0; i < count; ++i) {
    if (counts(i)) ++uses.start[latent[i] + 1];
  }
  for (int64_t l = 0; l < latents; ++l) uses.start[l + 1] += uses.start[l];
  uses.place.resize(uses.start[latents]);
  std::vector<int32_t> next(uses.start.begin(), uses.start.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    if (counts(i)) uses.place[next[latent[i]]++] = i;
  }
  return uses;
}

// row - (row . along) along
inline void TakeOff(const float* along, int64_t columns, float* row) {
  const __m512 part = _mm512_set1_ps(Dot(row, along, columns));
  for (int64_t i = 0; i < columns; i += kLanes) {
    const __mmask16 there = First(columns - i);
    const __m512 value = _mm512_maskz_loadu_ps(there, row + i);
    _mm512_mask_storeu_ps(row + i, there,
                          _mm512_fnmadd_ps(part, _mm512_maskz_loadu_ps(there, along + i), value));
  }
}

ffi::Error Gradients(ffi::ThreadPool pool, Matrix code, Integers index, Matrix slope,
                     Matrix centred, Matrix decoder, ffi::Result<Matrix> of_encoder,
                     ffi::Result<Floats> of_bias, ffi::Result<Matrix> of_decoder,
                     ffi::Result<Indices> used) {
  const int64_t k = code.dimensions()[1], latents = decoder.dimensions()[0];
  const int64_t d = decoder.dimensions()[1];
  const Uses uses = UsesOf(code, index, latents);
  const auto start = [&] {
    return [&, code_slope = std::vector<float>()](int64_t item) mutable {
      for (int64_t l = item * kLatentsAnItem; l < std::min((item + 1) * kLatentsAnItem, latents);
           ++l) {
        const int32_t* place = uses.place.data() + uses.start[l];
        const int64_t count = uses.start[l + 1] - uses.start[l];
        const float* own = decoder.typed_data() + l * d;
        const auto row_of = [&](const Matrix& of) {
          return [&, d](int64_t j) { return of.typed_data() + place[j] / k * d; };
        };
        code_slope.resize(count);
        float total = 0;
        for (int64_t j = 0; j < count; ++j) total += code_slope[j] = Dot(row_of(slope)(j), own, d);
        of_bias->typed_data()[l] = total;
        used->typed_data()[l] = count;
        Combine(
            count, d, [&](int64_t j) { return code_slope[j]; }, row_of(centred),
            of_encoder->typed_data() + l * d);
        float* gradient = of_decoder->typed_data() + l * d;
        Combine(
            count, d, [&](int64_t j) { return code.typed_data()[place[j]]; }, row_of(slope),
            gradient);
        TakeOff(own, d, gradient);
      }
    };
  };
  ForEachBy(pool, (latents + kLatentsAnItem - 1) / kLatentsAnItem, start);
  return ffi::Error::Success();
}

// Rows over their lengths, those of zeros as they are.
ffi::Error UnitRows(ffi::ThreadPool pool, Matrix x, ffi::Result<Matrix> unit) {
  const int64_t n = x.dimensions()[0], d = x.dimensions()[1];
  ForEach(pool, (n + kLatentsAnItem - 1) / kLatentsAnItem, [&](int64_t item) {
    for (int64_t l = item * kLatentsAnItem; l < std::min((item + 1) * kLatentsAnItem, n); ++l) {
      const float* from = x.typed_data() + l * d;
      float* to = unit->typed_data() + l * d;
      const float length = std::sqrt(Dot(from, from, d));
      const __m512 by = _mm512_set1_ps(std::max(length, std::numeric_limits<float>::min()));
      for (int64_t i = 0; i < d; i += kLanes) {
        const __mmask16 there = First(d - i);
        _mm512_mask_storeu_ps(to + i, there,
                              _mm512_div_ps(_mm512_maskz_loadu_ps(there, from + i), by));
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_sae_codes, jsel::Codes,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Ret<jsel::Matrix>()
                                  .Ret<jsel::Integers>()
                                  .Attr<bool>("narrow"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_sae_decode, jsel::Decode,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Integers>()
                                  .Arg<jsel::Matrix>()
                                  .Ret<jsel::Matrix>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_sae_gradients, jsel::Gradients,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Integers>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Matrix>()
                                  .Ret<jsel::Matrix>()
                                  .Ret<jsel::Floats>()
                                  .Ret<jsel::Matrix>()
                                  .Ret<jsel::Indices>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jsel_unit_rows, jsel::UnitRows,
    jsel::ffi::Ffi::Bind().Ctx<jsel::ffi::ThreadPool>().Arg<jsel::Matrix>().Ret<jsel::Matrix>());
