// Attention over a block pool, inside an instruction set's namespace. See Attention in kernels.h.
constexpr int BLOCK = 16;               // tokens in a block
constexpr int LANES = BLOCK / VW;       // vectors that hold one block's scores

// Scores of M queries against B consecutive blocks: one chain over head_dim for each pair.
template <class T, int M, int B>
static void score_blocks(const Attention& t, int first_query, int64_t block) {
  vf acc[M][B * LANES];
  const T* keys[B];
  for (int b = 0; b < B; ++b) keys[b] = (const T*)t.keys + t.blocks[block + b] * t.block_stride_k;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < B * LANES; ++j) acc[m][j] = splat(0.0f);
  for (int64_t d = 0; d < t.head_dim; ++d) {
#pragma GCC unroll 8
    for (int j = 0; j < B * LANES; ++j) {
      const vf key = load(keys[j / LANES] + d * BLOCK + (j % LANES) * VW);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[m][j] = fma(splat(t.queries[first_query + m][d]), key, acc[m][j]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < B * LANES; ++j)
      store(t.scores + (first_query + m) * t.score_stride + block * BLOCK + j * VW, acc[m][j] * splat(t.scale));
}

template <class T, int M>
static void score_queries(const Attention& t, int first_query, int64_t num_blocks) {
  constexpr int B = M <= 2 ? 4 : 1;
  int64_t block = 0;
  for (; block + B <= num_blocks; block += B) score_blocks<T, M, B>(t, first_query, block);
  for (; block < num_blocks; ++block) score_blocks<T, M, 1>(t, first_query, block);
}

// scores become weights exp(s - max); returns their sum.
static float soften(float* scores, int64_t length) {
  const int64_t end = (length + BLOCK - 1) / BLOCK * BLOCK;
  for (int64_t i = length; i < end; ++i) scores[i] = -__builtin_inff();
  vf best = splat(-__builtin_inff());
  for (int64_t i = 0; i < end; i += VW) best = vmax(best, load(scores + i));
  const vf top = splat(max_lanes(best));
  vf total = splat(0.0f);
  for (int64_t i = 0; i < end; i += VW) {
    const vf w = vexp(load(scores + i) - top);
    store(scores + i, w);
    total = total + w;
  }
  return sum_lanes(total);
}

// P vectors of an output, one chain over the keys for each.
template <class T, int P>
static void mix_values(const Attention& t, int query, int64_t column, float sum) {
  const float* weights = t.scores + query * t.score_stride;
  vf acc[P];
#pragma GCC unroll 4
  for (int j = 0; j < P; ++j) acc[j] = splat(0.0f);
  for (int64_t start = 0; start < t.lengths[query]; start += BLOCK) {
    const T* values = (const T*)t.values + t.blocks[start / BLOCK] * t.block_stride_v + column;
    const int64_t left = t.lengths[query] - start, count = left < BLOCK ? left : BLOCK;
    for (int64_t i = 0; i < count; ++i) {
      const vf w = splat(weights[start + i]);
#pragma GCC unroll 4
      for (int j = 0; j < P; ++j) acc[j] = fma(w, load(values + i * t.value_stride + j * VW), acc[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < P; ++j) store(t.outputs[query] + column + j * VW, acc[j] / splat(sum));
}

template <class T>
static void attend_over(const Attention& t) {
  int64_t longest = 0;
  for (int q = 0; q < t.count; ++q) longest = t.lengths[q] > longest ? t.lengths[q] : longest;
  const int64_t num_blocks = (longest + BLOCK - 1) / BLOCK;
  int q = 0;
  for (; q + 8 <= t.count; q += 8) score_queries<T, 8>(t, q, num_blocks);
  for (; q + 4 <= t.count; q += 4) score_queries<T, 4>(t, q, num_blocks);
  for (; q + 2 <= t.count; q += 2) score_queries<T, 2>(t, q, num_blocks);
  for (; q < t.count; ++q) score_queries<T, 1>(t, q, num_blocks);
  for (q = 0; q < t.count; ++q) {
    const float sum = soften(t.scores + q * t.score_stride, t.lengths[q]);
    int64_t column = 0;
    for (; column + 4 * VW <= t.value_stride; column += 4 * VW) mix_values<T, 4>(t, q, column, sum);
    for (; column < t.value_stride; column += VW) mix_values<T, 1>(t, q, column, sum);
  }
}

static void attend(const Attention& t) { t.bf16 ? attend_over<uint16_t>(t) : attend_over<float>(t); }
