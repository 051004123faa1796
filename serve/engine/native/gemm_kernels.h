// Matrix product with packed weights, inside an instruction set's namespace. See Gemm in kernels.h.
// Panel p of a float matrix: [depth][NR]. Of a bfloat16 matrix: [depth / 2][NR][2].
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 12;
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 6;
#else
constexpr int MAX_ROWS = 4;
#endif

static inline void store_activation(void* out, int64_t at, vf v, bool bf16) {
  if (!bf16) return store((float*)out + at, v);
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(v);
  __builtin_memcpy((uint16_t*)out + at, &half, sizeof half);
#else
  for (int i = 0; i < VW; ++i) ((uint16_t*)out)[at + i] = to_bf16(v[i]);
#endif
}

static inline void finish(const Gemm& g, int64_t row, int64_t panel, vf low, vf high, bool bf16) {
  if (g.epilogue == Epilogue::swiglu) {
    const vf silu = low / (splat(1.0f) + vexp(-low));
    return store_activation(g.c, row * g.ldc + panel * VW, silu * high, bf16);
  }
  float* c = (float*)g.c + row * g.ldc + panel * NR;
  if (g.epilogue == Epilogue::add) {
    low = load(c) + low;
    high = load(c + VW) + high;
  }
  store(c, low);
  store(c + VW, high);
}

template <int M, int P>
static void tile_f32(const Gemm& g, int64_t row, int64_t panel) {
  vf acc[M][2 * P];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) acc[m][j] = splat(0.0f);
  const float* a = (const float*)g.a + row * g.lda;
  const float* b = (const float*)g.weights + panel * g.depth * NR;
  const int64_t next = g.depth * NR;
  for (int64_t k = 0; k < g.depth; ++k) {
    vf w[2 * P];
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) w[j] = load(b + (j / 2) * next + k * NR + (j % 2) * VW);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf x = splat(a[m * g.lda + k]);
#pragma GCC unroll 8
      for (int j = 0; j < 2 * P; ++j) acc[m][j] = fma(x, w[j], acc[m][j]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) finish(g, row + m, panel + p, acc[m][2 * p], acc[m][2 * p + 1], false);
}

#if defined(__AVX512BF16__)
template <int M, int P>
static void tile_bf16(const Gemm& g, int64_t row, int64_t panel) {
  vf acc[M][2 * P];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) acc[m][j] = splat(0.0f);
  const int64_t pairs = (g.depth + 1) / 2, next = pairs * NR * 2;
  const uint16_t* a = (const uint16_t*)g.a + row * g.lda;
  const uint16_t* b = (const uint16_t*)g.weights + panel * next;
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh w[2 * P];
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) __builtin_memcpy(&w[j], b + (j / 2) * next + k * NR * 2 + (j % 2) * VW * 2, 64);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, a + m * g.lda + 2 * k, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int j = 0; j < 2 * P; ++j) acc[m][j] = _mm512_dpbf16_ps(acc[m][j], x, w[j]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) finish(g, row + m, panel + p, acc[m][2 * p], acc[m][2 * p + 1], true);
}
#endif

struct TileF32 {
  template <int M, int P>
  static void run(const Gemm& g, int64_t row, int64_t panel) { tile_f32<M, P>(g, row, panel); }
};

// M rows by all panels first..last, two or four panels at a time where the rows alone would leave the pipes waiting.
template <class Tile, int M>
static void strip(const Gemm& g, int64_t row, int64_t first, int64_t last) {
  constexpr int P = M == 1 ? 4 : M == 2 ? 2 : 1;
  int64_t panel = first;
  for (; panel + P <= last; panel += P) Tile::template run<M, P>(g, row, panel);
  for (; panel < last; ++panel) Tile::template run<M, 1>(g, row, panel);
}

template <class Tile, int M = MAX_ROWS>
static void strip_of(int rows, const Gemm& g, int64_t row, int64_t first, int64_t last) {
  if (rows == M) return strip<Tile, M>(g, row, first, last);
  if constexpr (M > 1) strip_of<Tile, M - 1>(rows, g, row, first, last);
}

template <class Tile>
static void gemm(const Gemm& g, int64_t first, int64_t last) {
  const int64_t strips = (g.rows + MAX_ROWS - 1) / MAX_ROWS;
  const int64_t step = strips == 1 ? last - first : 1;  // a panel stays in cache while all rows pass over it
  for (int64_t panel = first; panel < last; panel += step)
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t from = s * g.rows / strips, to = (s + 1) * g.rows / strips;
      strip_of<Tile>((int)(to - from), g, from, panel, panel + step);
    }
}

static void gemm_f32(const Gemm& g, int64_t first, int64_t last) { gemm<TileF32>(g, first, last); }

#if defined(__AVX512BF16__)
struct TileBf16 {
  template <int M, int P>
  static void run(const Gemm& g, int64_t row, int64_t panel) { tile_bf16<M, P>(g, row, panel); }
};
static void gemm_bf16(const Gemm& g, int64_t first, int64_t last) { gemm<TileBf16>(g, first, last); }
#else
constexpr void (*gemm_bf16)(const Gemm&, int64_t, int64_t) = nullptr;
#endif
