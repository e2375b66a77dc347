// The rows of largest inner product with each of some queries, of a matrix that is walked through
// once.
//
// Rows come in rounds. Threads list what is above the last of its query's best, each of some rows;
// then each query takes up its own, and keeps the best of them where there are twice as many as it
// is to have. Later rows have higher ids: of equal products those that are held win.
#include <immintrin.h>

#include <cstring>
#include <functional>
#include <vector>

#include "keys.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace jsel {
namespace {

constexpr int64_t kItemsAThread = 4;  // of the first rounds
constexpr int64_t kQueriesAnItem = 8;

bool Finite(const float* values, int64_t count) {
  __mmask16 found = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512 some = _mm512_maskz_loadu_ps(First(count - i), values + i);
    found |= _mm512_fpclass_ps_mask(some, kNotFinite);
  }
  return !found;
}

// Products of a row that has an infinity, which as a sum of parts is none.
void ByFloats(const float* row, const Matrix& queries, float* products) {
  const int64_t d = queries.dimensions()[1];
  for (int64_t j = 0; j < queries.dimensions()[0]; ++j) {
    products[j] = Dot(row, queries.typed_data() + j * d, d);
  }
}

// Keys and the ids of their rows, ascending.
struct Rows {
  std::unique_ptr<int32_t[], Free> keys, ids;
  int64_t count = 0, room = 0;

  void Grow(int64_t most) {
    auto more_keys = Aligned<int32_t>(most), more_ids = Aligned<int32_t>(most);
    std::copy_n(keys.get(), count, more_keys.get());
    std::copy_n(ids.get(), count, more_ids.get());
    keys = std::move(more_keys);
    ids = std::move(more_ids);
    room = most;
  }

  void Append(const int32_t* more_keys, const int32_t* more_ids, int64_t more) {
    if (count + more > room) Grow(std::max(count + more, 2 * room));
    std::copy_n(more_keys, more, keys.get() + count);
    std::copy_n(more_ids, more, ids.get() + count);
    count += more;
  }

  // Keeps the k highest, of which the last is returned; of equal ones the first.
  int32_t Keep(int64_t k) {
    const auto some = Aligned<int32_t>(count + kLanes), spare = Aligned<int32_t>(count + kLanes);
    std::copy_n(keys.get(), count, some.get());
    const int32_t kth = KthHighest(some.get(), count, k, spare.get());
    int64_t ties =
        k - std::count_if(keys.get(), keys.get() + count, [&](int32_t key) { return key > kth; });
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (keys[i] < kth || (keys[i] == kth && ties-- <= 0)) continue;
      keys[kept] = keys[i];
      ids[kept++] = ids[i];
    }
    count = kept;
    return kth;
  }
};

// What some rows have for each query.
struct Listed {
  std::vector<int32_t> start;  // [queries + 1]
  std::unique_ptr<int32_t[], Free> keys, ids;
};

// A thread's list: products come by row, and leave by query.
class List {
 public:
  List(int64_t queries, int64_t rows)
      : queries_(queries),
        keys_(Aligned<int32_t>(rows * queries + kLanes)),
        rows_(Aligned<int32_t>(rows * queries + kLanes)),
        query_(Aligned<int32_t>(rows * queries + kLanes)) {}

  // Products of a row with all queries that are above their bounds.
  void Take(const float* products, const int32_t* bounds, int64_t columns, int32_t row) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const __m512i keys = KeysOf(_mm512_load_ps(products + j));
      const __mmask16 above = _mm512_cmpgt_epi32_mask(keys, _mm512_load_si512(bounds + j));
      if (!above) continue;
      _mm512_storeu_si512(rows_.get() + count_, _mm512_set1_epi32(row));
      Pack(above, _mm512_add_epi32(Lanes(), _mm512_set1_epi32(j)), query_.get() + count_);
      count_ += Pack(above, keys, keys_.get() + count_);
    }
  }

  Listed Leave() {
    Listed listed{std::vector<int32_t>(queries_ + 1), Aligned<int32_t>(count_),
                  Aligned<int32_t>(count_)};
    for (int64_t i = 0; i < count_; ++i) ++listed.start[query_[i] + 1];
    for (int64_t j = 0; j < queries_; ++j) listed.start[j + 1] += listed.start[j];
    std::vector<int32_t> next(listed.start.begin(), listed.start.end() - 1);
    for (int64_t i = 0; i < count_; ++i) {
      const int32_t to = next[query_[i]]++;
      listed.keys[to] = keys_[i];
      listed.ids[to] = rows_[i];
    }
    count_ = 0;
    return listed;
  }

 private:
  const int64_t queries_;
  const std::unique_ptr<int32_t[], Free> keys_, rows_, query_;
  int64_t count_ = 0;
};

template <int kParts>
void BestBy(ffi::ThreadPool& pool, const Matrix& x, const Matrix& queries, const bool* valid,
            int64_t most_rows, Integers& keys, Integers& ids) {
  const int64_t n = x.dimensions()[0], q = keys.dimensions()[0], k = keys.dimensions()[1];
  const Panels<kParts> panels(pool, queries);
  const int64_t some = panels.RowsAnItem(), items = (n + some - 1) / some;
  std::vector<Rows> best(q);
  const auto bounds = Aligned<int32_t>(panels.columns);
  std::fill_n(bounds.get(), panels.columns, std::numeric_limits<int32_t>::max());
  std::fill_n(bounds.get(), q, kLowest);
  const auto of_queries = [&](const auto& work) {
    ForEach(pool, (q + kQueriesAnItem - 1) / kQueriesAnItem, [&](int64_t item) {
      const int64_t first = item * kQueriesAnItem, last = std::min(first + kQueriesAnItem, q);
      for (int64_t j = first; j < last; ++j) work(j);
    });
  };
  const int64_t most = std::max<int64_t>(most_rows / some, 1);
  const int64_t least = std::min<int64_t>(kItemsAThread * pool.num_threads(), most);
  // As many rows as have been seen: while there are few, most of the next are among the best.
  for (int64_t begin = 0, round; begin < items; begin += round) {
    round = std::min(std::clamp(begin, least, most), items - begin);
    std::vector<Listed> listed(round);
    ForEachBy(pool, round, [&] {
      return [&, list = List(q, some), products = Aligned<float>(some * panels.stride),
              rows = Aligned<uint32_t>(some * panels.apart)](int64_t item) mutable {
        const int64_t first = (begin + item) * some, count = std::min(some, n - first);
        ConvertRows(x, nullptr, first, count, panels, rows.get());
        Multiply(rows.get(), count, panels, products.get(),
                 [](int64_t, int64_t, __m512 product) { return product; });
        for (int64_t r = 0; r < count; ++r) {
          if (!valid[first + r]) continue;
          float* of_row = products.get() + r * panels.stride;
          if (kParts > 1 && !Finite(of_row, q)) {
            ByFloats(x.typed_data() + (first + r) * panels.d, queries, of_row);
          }
          list.Take(of_row, bounds.get(), panels.columns, first + r);
        }
        listed[item] = list.Leave();
      };
    });
    of_queries([&](int64_t j) {
      for (const Listed& part : listed) {
        const int32_t from = part.start[j], count = part.start[j + 1] - from;
        if (count) best[j].Append(part.keys.get() + from, part.ids.get() + from, count);
      }
      if (best[j].count >= 2 * k) bounds[j] = best[j].Keep(k);
    });
  }
  of_queries([&](int64_t j) {
    Rows& rows = best[j];
    if (rows.count > k) rows.Keep(k);
    std::vector<uint64_t> order(rows.count);
    for (int64_t i = 0; i < rows.count; ++i) {
      order[i] = Ranked(rows.keys[i], rows.ids[i]);
    }
    std::sort(order.begin(), order.end(), std::greater<uint64_t>());
    int32_t* to_keys = keys.typed_data() + j * k;
    int32_t* to_ids = ids.typed_data() + j * k;
    for (int64_t i = 0; i < k; ++i) {
      to_keys[i] = i < rows.count ? RankedKey(order[i]) : kLowest;
      to_ids[i] = i < rows.count ? RankedPlace(order[i]) : -1;
    }
  });
}

ffi::Error BestMatches(ffi::ThreadPool pool, Matrix x, Matrix queries, Mask valid,
                       ffi::Result<Integers> keys, ffi::Result<Integers> ids, int64_t parts,
                       int64_t rows) {
  const bool by_parts = HasTiles() && Finite(queries.typed_data(), queries.element_count());
  const auto best = parts == 1 && HasBfloat16() ? BestBy<1>
                    : !by_parts                 ? BestBy<0>
                    : parts == 2                ? BestBy<2>
                                                : BestBy<3>;
  best(pool, x, queries, valid.typed_data(), rows, *keys, *ids);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jsel

XLA_FFI_DEFINE_HANDLER_SYMBOL(jsel_best_matches, jsel::BestMatches,
                              jsel::ffi::Ffi::Bind()
                                  .Ctx<jsel::ffi::ThreadPool>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Matrix>()
                                  .Arg<jsel::Mask>()
                                  .Ret<jsel::Integers>()
                                  .Ret<jsel::Integers>()
                                  .Attr<int64_t>("parts")
                                  .Attr<int64_t>("rows"));
