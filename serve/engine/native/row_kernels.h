// Loops over one row of numbers, inside an instruction set's namespace. See Kernels in kernels.h.

static void rms_norm(const float* x, const float* weight, int64_t width, int64_t size, float eps, void* out,
                     bool bf16) {
  vf squares = splat(0.0f);
  for (int64_t i = 0; i < width; i += VW) squares = fma(load(x + i), load(x + i), squares);
  const vf scale = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / (float)size + eps));
  for (int64_t i = 0; i < width; i += VW) store_activation(out, i, load(x + i) * scale * load(weight + i), bf16);
}

static void to_activation(const float* x, int64_t count, void* out, bool bf16) {
  int64_t i = 0;
  for (; i + VW <= count; i += VW) store_activation(out, i, load(x + i), bf16);
  for (; i < count; ++i) {
    if (bf16) ((uint16_t*)out)[i] = to_bf16(x[i]);
    else ((float*)out)[i] = x[i];
  }
}

// Entries past the row's end count as -inf.
static inline vf load_some(const float* p, int64_t count) {
  if (count >= VW) return load(p);
  float lanes[VW];
  for (int i = 0; i < VW; ++i) lanes[i] = i < count ? p[i] : -__builtin_inff();
  return load(lanes);
}

static RowStats row_stats(const float* z, int64_t count, float* w, double* sums) {
  // vmax and vexp both lose a not-a-number, so it is looked for here; the sum then tells of it.
  vf best = splat(-__builtin_inff());
  vi unordered = {};
  for (int64_t i = 0; i < count; i += VW) {
    const vf x = load_some(z + i, count - i);
    unordered |= (vi)(x != x);
    best = vmax(best, x);
  }
  RowStats stats = {max_lanes(best), 0.0, 0.0};
  for (int i = 0; i < VW; ++i)
    if (unordered[i] != 0) stats.sum = __builtin_nan("");
  const vf top = splat(stats.max), least = splat(-1e4f);
  // A lane adds at most SUM_BLOCK / VW numbers in float32, the rest is float64.
  for (int64_t start = 0; start < count; start += SUM_BLOCK) {
    vf sum[2] = {splat(0.0f), splat(0.0f)}, weighted[2] = {splat(0.0f), splat(0.0f)};
    const int64_t end = start + SUM_BLOCK < count ? start + SUM_BLOCK : count;
    for (int64_t i = start; i < end; i += VW) {
      const vf below = load_some(z + i, end - i) - top;
      const vf e = vexp(below);
      if (end - i >= VW) store(w + i, e);
      else for (int64_t j = i; j < end; ++j) w[j] = e[j - i];
      const int64_t half = (i - start) / VW % 2;
      sum[half] = sum[half] + e;
      weighted[half] = fma(e, vmax(below, least), weighted[half]);
    }
    const double block = sum_lanes(__builtin_convertvector(sum[0], vd) + __builtin_convertvector(sum[1], vd));
    sums[start / SUM_BLOCK] = block;
    stats.sum += block;
    stats.weighted += sum_lanes(__builtin_convertvector(weighted[0], vd) + __builtin_convertvector(weighted[1], vd));
  }
  return stats;
}

static double sum_above(const float* z, const float* w, int64_t count, float bound) {
  const vf limit = splat(bound);
  double total = 0.0;
  int64_t i = 0;
  for (; i + VW <= count;) {
    vd sum = {};
    for (const int64_t end = i + 4096; i + VW <= count && i < end; i += VW) {
      const vi above = (vi)(load(z + i) > limit);
      sum += __builtin_convertvector((vf)((vi)load(w + i) & above), vd);
    }
    total += sum_lanes(sum);
  }
  for (; i < count; ++i) total += z[i] > bound ? w[i] : 0.0;
  return total;
}

static void divide(float* z, int64_t count, float by) {
  int64_t i = 0;
  for (; i + VW <= count; i += VW) store(z + i, load(z + i) / splat(by));
  for (; i < count; ++i) z[i] = z[i] / by;
}
