// The largest entries of every row of a matrix.
#include <immintrin.h>

#include "parallel.h"
#include "row_search.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kFloatsAnItem = 1 << 16;

ffi::Error RowTopK(ffi::ThreadPool pool, Matrix x, ffi::Result<Matrix> values,
                   ffi::Result<Integers> columns) {
  const int64_t n = x.dimensions()[0], width = x.dimensions()[1], k = values->dimensions()[1];
  const int64_t rows = std::max<int64_t>(kFloatsAnItem / std::max<int64_t>(width, 1), 1);
  const auto start = [&] {
    return [&, search = RowSearch(width, k)](int64_t item) mutable {
      for (int64_t i = item * rows; i < std::min((item + 1) * rows, n); ++i) {
        search.Take(x.typed_data() + i * width, values->typed_data() + i * k,
                    columns->typed_data() + i * k);
      }
    };
  };
  ForEachBy(pool, (n + rows - 1) / rows, start);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_row_top_k, jsel::RowTopK,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Ret<jsel::Matrix>()
                                  .Ret<jsel::Integers>());
