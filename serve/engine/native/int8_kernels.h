// Matrix product with int8 weights and activations, inside an instruction set's namespace, after gemm_kernels.h.
// See Int8Scales in kernels.h. Panel p of the matrix: [depth / 4][NR][4].
#if defined(__AVX512VNNI__)
// _mm512_dpbusd_epi32, which gcc 12 surrounds with two copies of the sum each time it is in a loop.
static inline void add_products(__m512i& sum, __m512i weights, __m512i inputs) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(inputs));
}

template <int M, int P>
static void tile_int8(const Gemm& g, int64_t row, int64_t panel) {
  constexpr int64_t FOURS = INT8_GROUP / 4;
  vf sum[M][2 * P];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) sum[m][j] = splat(0.0f);
  const int64_t fours = (g.depth + 3) / 4, next = fours * NR * 4;
  const int8_t* a = (const int8_t*)g.a + row * g.lda;
  const uint8_t* b = (const uint8_t*)g.weights + panel * next;
  const Int8Group* group = g.int8->groups + row * g.int8->groups_each;
  for (int64_t start = 0; start < fours; start += FOURS, ++group) {
    __m512i acc[M][2 * P];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < 2 * P; ++j) acc[m][j] = _mm512_set1_epi32(group[m * g.int8->groups_each].offset);
    const int64_t end = start + FOURS < fours ? start + FOURS : fours;
    for (int64_t k = start; k < end; ++k) {
      __m512i w[2 * P];
#pragma GCC unroll 8
      for (int j = 0; j < 2 * P; ++j) w[j] = _mm512_loadu_si512(b + (j / 2) * next + k * NR * 4 + (j % 2) * VW * 4);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        int32_t four;
        __builtin_memcpy(&four, a + m * g.lda + 4 * k, 4);
        const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 8
        for (int j = 0; j < 2 * P; ++j) add_products(acc[m][j], w[j], x);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf scale = splat(group[m * g.int8->groups_each].scale);
#pragma GCC unroll 8
      for (int j = 0; j < 2 * P; ++j) sum[m][j] = fma(_mm512_cvtepi32_ps(acc[m][j]), scale, sum[m][j]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const float* scales = g.int8->outputs + (panel + p) * NR;
      finish(g, row + m, panel + p, sum[m][2 * p] * load(scales), sum[m][2 * p + 1] * load(scales + VW), false);
    }
}

struct TileInt8 {
  template <int M, int P>
  static void run(const Gemm& g, int64_t row, int64_t panel) { tile_int8<M, P>(g, row, panel); }
};
static void gemm_int8(const Gemm& g, int64_t first, int64_t last) { gemm<TileInt8>(g, first, last); }

static void quantise(const float* x, int64_t count, int8_t* out, Int8Group* groups) {
  constexpr int PARTS = INT8_GROUP / VW;
  for (int64_t start = 0; start < count; start += INT8_GROUP, ++groups) {
    __m512 v[PARTS];
    __m512i largest_bits = _mm512_setzero_si512(), sum = _mm512_setzero_si512();
    for (int i = 0; i < PARTS; ++i) {
      const int64_t rest = count - start - i * VW;
      v[i] = _mm512_maskz_loadu_ps(rest >= VW ? 0xffff : rest <= 0 ? 0 : (1 << rest) - 1, x + start + i * VW);
      largest_bits = _mm512_max_epi32(largest_bits, _mm512_castps_si512(_mm512_abs_ps(v[i])));
    }
    // As whole numbers, the bits of |x| are in the order of |x|, infinity and then what is not a number at the end.
    const int32_t bits = _mm512_reduce_max_epi32(largest_bits);
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    const bool finite = bits < 0x7f800000;
    const float inverse = finite && largest >= INT8_LEAST ? 127.0f / largest : 0.0f;
    for (int i = 0; i < PARTS; ++i) {
      const __m512i whole = inverse == 0.0f ? _mm512_setzero_si512() : _mm512_cvtps_epi32(v[i] * splat(inverse));
      _mm_storeu_si128((__m128i*)(out + start + i * VW), _mm512_cvtepi32_epi8(whole));
      sum = _mm512_add_epi32(sum, whole);
    }
    *groups = {finite ? largest / 127.0f : __builtin_nanf(""), -128 * _mm512_reduce_add_epi32(sum)};
  }
}
#else
constexpr void (*gemm_int8)(const Gemm&, int64_t, int64_t) = nullptr;
constexpr void (*quantise)(const float*, int64_t, int8_t*, Int8Group*) = nullptr;
#endif
