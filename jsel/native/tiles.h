// Products of bfloat16 by tiles, on processors that have AMX.
#ifndef JSEL_NATIVE_TILES_H_
#define JSEL_NATIVE_TILES_H_

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace jsel {

constexpr int64_t kTile = 16;          // rows of a tile, and pairs of bfloat16 or floats of each
constexpr int64_t kTiled = 2 * kTile;  // rows and columns of a block, which is four tiles

// Whether the processor has them and Linux lets this process use them, which it is asked for once.
inline bool HasTiles() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBfloat16) || !(d & kTiles)) return false;
#ifdef SYS_arch_prctl
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
  }();
  return has;
}

// Whether products of bfloat16 are faster than those of float32: where there are no tiles, AMD's
// vectors multiply twice as many of them as of floats, Intel's half as many.
inline bool HasBfloat16() {
  return __builtin_cpu_supports("avx512bf16") && (HasTiles() || __builtin_cpu_is("amd"));
}

// All tiles of this thread are full ones as long as this is held; then they are as they were.
class FullTiles {
 public:
  FullTiles() {
    _tile_storeconfig(before_);
    alignas(64) uint8_t full[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      full[16 + 2 * tile] = kTile * sizeof(uint32_t);  // bytes of a row
      full[48 + tile] = kTile;
    }
    Load(full);
  }
  ~FullTiles() { Load(before_); }
  FullTiles(const FullTiles&) = delete;
  FullTiles& operator=(const FullTiles&) = delete;

 private:
  // The compiler does not know that tiles read and write memory.
  static void Load(const uint8_t* config) {
    asm volatile("" ::: "memory");
    _tile_loadconfig(config);
  }

  alignas(64) uint8_t before_[64];
};

// Operands are [groups, kParts, 2, kTile, kTile] pairs: for each 32 columns and each part the tiles
// of both halves of kTiled rows; or those of a panel, whose tiles have a row for each pair of
// columns. In a tile lies what is loaded together, and tiles lie in the order that they are used
// in.
constexpr int64_t kTileWords = kTile * kTile;
constexpr int64_t kOperand = 2 * kTileWords;            // a part of 32 columns
constexpr int64_t kTileRow = kTile * sizeof(uint32_t);  // bytes

// A block of sums is in tiles 0 to 3: made zero, added to, and stored as [kTiled, kTiled].
inline void ClearTiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void LoadRows(const uint32_t* tiles) {
  _tile_loadd(4, tiles, kTileRow);
  _tile_loadd(5, tiles + kTileWords, kTileRow);
}

inline void LoadPanel(const uint32_t* tiles) {
  _tile_loadd(6, tiles, kTileRow);
  _tile_loadd(7, tiles + kTileWords, kTileRow);
}

inline void MultiplyTiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// The products of floats that are a sum of kParts bfloat16: of two parts what is left out is 2**-16
// of a term, of three 2**-24.
template <int kParts>
inline void AddTiles(const uint32_t* rows, const uint32_t* panel, int64_t groups) {
  static_assert(1 <= kParts && kParts <= 3);
  asm volatile("" ::: "memory");
  for (int64_t g = 0; g < groups; ++g, rows += kParts * kOperand, panel += kParts * kOperand) {
    LoadRows(rows);
    LoadPanel(panel);
    MultiplyTiles();
    if constexpr (kParts == 3) {
      LoadPanel(panel + 2 * kOperand);
      MultiplyTiles();
    }
    if constexpr (kParts > 1) {
      LoadPanel(panel + kOperand);
      MultiplyTiles();
    }
    if constexpr (kParts == 3) {
      LoadRows(rows + kOperand);
      MultiplyTiles();
      LoadPanel(panel);
      MultiplyTiles();
      LoadRows(rows + 2 * kOperand);
      MultiplyTiles();
    }
    if constexpr (kParts == 2) {
      LoadPanel(panel);
      LoadRows(rows + kOperand);
      MultiplyTiles();
    }
  }
}

// The same, of a panel whose floats are one bfloat16 each.
template <int kParts>
inline void AddExactly(const uint32_t* rows, const uint32_t* panel, int64_t groups) {
  asm volatile("" ::: "memory");
  for (int64_t g = 0; g < groups; ++g, panel += kOperand) {
    LoadPanel(panel);
    for (int part = 0; part < kParts; ++part, rows += kOperand) {
      LoadRows(rows);
      MultiplyTiles();
    }
  }
}

inline void StoreTiles(float* sums) {
  constexpr int64_t kSums = kTiled * sizeof(float);
  _tile_stored(0, sums, kSums);
  _tile_stored(1, sums + kTile, kSums);
  _tile_stored(2, sums + kTile * kTiled, kSums);
  _tile_stored(3, sums + kTile * kTiled + kTile, kSums);
  asm volatile("" ::: "memory");
}

// kTiled rows of sums, of which each is `stride` long, plus those in tiles.
inline void AddStored(float* total, int64_t stride) {
  alignas(64) float sums[kTiled * kTiled];
  StoreTiles(sums);
  for (int64_t r = 0; r < kTiled; ++r) {
    for (int64_t j = 0; j < kTiled; j += kTile) {
      float* to = total + r * stride + j;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_load_ps(sums + r * kTiled + j)));
    }
  }
}

constexpr int kNotFinite = 0x99;  // infinities, and NaN of both kinds

inline __m512 Float(__m256i bfloat16) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16);
}

// The next part of sixteen floats, which is taken from them: all of what is not finite.
inline __m256i TakePart(__m512& value) {
  const __m256i part = (__m256i)_mm512_cvtneps_pbh(value);
  const __m512 left = _mm512_sub_ps(value, Float(part));
  value = _mm512_maskz_mov_ps(_knot_mask16(_mm512_fpclass_ps_mask(left, kNotFinite)), left);
  return part;
}

}  // namespace jsel

#endif  // JSEL_NATIVE_TILES_H_
