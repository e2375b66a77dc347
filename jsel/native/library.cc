// What the processor at hand has, which jsel this was built for, and what memory its kernels took.
#include "tiles.h"
#include "vectors.h"

// Raised with every change of a kernel's arguments or results; also in __init__.py.
extern "C" int jsel_native_version() { return 3; }

extern "C" int jsel_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

extern "C" int jsel_has_bfloat16() { return jsel_has_avx512() && jsel::HasBfloat16(); }

// The most bytes that kernels have held since the last call.
extern "C" int64_t jsel_most_held() {
  const int64_t most = jsel::most_held;
  jsel::most_held = jsel::held.load();
  return most;
}
