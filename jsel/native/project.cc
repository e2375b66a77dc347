// Rows less a vector, times the rows of a small matrix, each product by a factor.
#include <immintrin.h>

#include <cstring>

#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace jsel {
namespace {

template <int kParts>
void ProjectBy(ffi::ThreadPool& pool, const Matrix& x, const Floats& shift,
               const Matrix& components, const Floats& scale, Matrix& y) {
  const Panels<kParts> panels(pool, components);
  const int64_t n = x.dimensions()[0], k = panels.count;
  const auto factors = OfColumns(scale, panels, 0);
  const int64_t some = panels.RowsAnItem();
  const auto start = [&] {
    return [&, results = Aligned<float>(some * panels.stride),
            rows = Aligned<uint32_t>(some * panels.apart)](int64_t item) {
      const int64_t first = item * some, count = std::min(some, n - first);
      ConvertRows(x, shift.typed_data(), first, count, panels, rows.get());
      Multiply(rows.get(), count, panels, results.get(), [&](int64_t, int64_t j, __m512 product) {
        return _mm512_mul_ps(product, _mm512_load_ps(factors.get() + j));
      });
      for (int64_t r = 0; r < count; ++r) {
        std::memcpy(y.typed_data() + (first + r) * k, results.get() + r * panels.stride,
                    k * sizeof(float));
      }
    };
  };
  ForEachBy(pool, (n + some - 1) / some, start);
}

ffi::Error Project(ffi::ThreadPool pool, Matrix x, Floats shift, Matrix components, Floats scale,
                   ffi::Result<Matrix> y, int64_t parts) {
  const auto project = !HasTiles()  ? ProjectBy<0>
                       : parts == 1 ? ProjectBy<1>
                       : parts == 2 ? ProjectBy<2>
                                    : ProjectBy<3>;
  project(pool, x, shift, components, scale, *y);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_project, jsel::Project,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Floats>()
                                  .Ret<jsel::Matrix>()
                                  .Attr<int64_t>("parts"));
