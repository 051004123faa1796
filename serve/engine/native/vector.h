// One vector type per instruction set, and exp on it. Included inside a namespace of its own by each kernels_*.cpp,
// which is compiled with that instruction set's flags. Nothing here may use the C++ library: an inline function of it
// compiled with AVX-512 could be the copy the linker keeps for everybody.
//
// No product is contracted by the compiler (-ffp-contract=off): fused operations are written as fma(), so that every
// kernel rounds the same way however many rows it handles at once.
#if defined(__AVX512F__)
constexpr int VW = 16;
typedef __m512 vf;
static inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf splat(float x) { return _mm512_set1_ps(x); }
#elif defined(__AVX2__)
constexpr int VW = 8;
typedef __m256 vf;
static inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf splat(float x) { return _mm256_set1_ps(x); }
#else
constexpr int VW = 4;
typedef float vf __attribute__((vector_size(16)));
static inline vf fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }
static inline vf vmin(vf a, vf b) { return a < b ? a : b; }
static inline vf splat(float x) { return vf{x, x, x, x}; }
#endif
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef double vd __attribute__((vector_size(VW * 8)));
constexpr int NR = 2 * VW;  // columns of a weight panel

static inline vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// bfloat16, widened.
static inline vf load(const uint16_t* p) {
  typedef uint16_t vh __attribute__((vector_size(VW * 2)));
  vh half;
  __builtin_memcpy(&half, p, sizeof half);
  return (vf)(__builtin_convertvector(half, vi) << 16);
}
static inline void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
static inline vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

// Lane by lane, always in the same order.
static inline float sum_lanes(vf v) {
  float lanes[VW];
  store(lanes, v);
  for (int step = VW / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}
static inline float max_lanes(vf v) {
  float lanes[VW];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < VW; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}
static inline double sum_lanes(const vd& v) {
  double sum = 0;
  for (int i = 0; i < VW; ++i) sum += v[i];
  return sum;
}

// e to the x, relative error below 2e-7; 0 below -87.3 (so also for -inf); arguments above 88 are clamped.
static inline vf vexp(vf x) {
  const vi alive = (vi)(x > splat(-87.3f));
  x = vmin(vmax(x, splat(-87.3f)), splat(88.0f));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, held in the low bits
  const vf shifted = fma(x, splat(1.44269504088896f), magic);
  const vf n = shifted - magic;
  vf r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.0f));
  const vi bits = (vi)p + ((vi)shifted << 23);
  return (vf)(bits & alive);
}
