#include "bench/rig/random.h"

#include "core/shared/round.h"

void moi_random_dense(moi_format type, void *out, size_t n, float scale, uint64_t seed) {
  for (size_t i = 0; i < n; i++) moi_dense_store(type, out, i, scale * moi_random_normal(seed, i));
}

void moi_random_activations(moi_format type, void *out, size_t n, uint64_t seed) {
  for (size_t i = 0; i < n; i++) {
    float x = moi_random_normal(seed, i);
    if (moi_random_below(seed ^ 0x5bd1, i, 64) == 0) x *= 6.0f;
    moi_dense_store(type, out, i, x);
  }
}
