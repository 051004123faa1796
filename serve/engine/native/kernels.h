// What the inner loops offer the rest of the library: one table of functions per instruction set, chosen at run time.
#pragma once
#include <stdint.h>

namespace native {

enum class Epilogue { store, add, swiglu };

// C (rows x columns) = A (rows x depth) times a packed matrix, then the epilogue.
// store: C = result. add: C += result. swiglu: a panel holds half its columns of gate and half of up; C gets
// silu(gate) * up, as an activation (float, or bfloat16 where the weights are).
// The sum over depth is one chain per output in ascending order: a row's result never depends on the other rows.
struct Int8Scales;
struct Gemm {
  const void* weights;  // packed panels
  const void* a;        // activations: float, or bfloat16 or int8 where the weights are
  void* c;
  int64_t lda, ldc;     // in elements
  int64_t rows, depth, panels;
  Epilogue epilogue;
  const Int8Scales* int8;  // null unless the weights are int8; then a is int8 too
};

// int8 weights have a scale each output, int8 activations one each INT8_GROUP inputs of a row. A whole number is
// v = round(x / scale) with the largest |x| under that scale at 127. Weights are held as v + 128 in a uint8, the form
// that the instruction wants, and `offset` takes the 128 back out of a group's sum.
constexpr int64_t INT8_GROUP = 64;
constexpr float INT8_LEAST = 1e-30f;  // numbers below it are zero: 127 over it would leave the range of floats
struct Int8Group {
  float scale;     // not a number when an input is not finite
  int32_t offset;  // -128 times the sum of the group's whole numbers
};
struct Int8Scales {
  const Int8Group* groups;  // groups_each for each row
  int64_t groups_each;
  const float* outputs;
};

// Attention of up to MAX_QUERIES (token, head) pairs that share keys and values.
// keys: per block [head_dim][16]; values: per block [16][value_stride]; both float, or both bfloat16 where `bf16` says.
// Scores, weights and outputs are float: a key or value is widened as it is read.
constexpr int MAX_QUERIES = 8;
struct Attention {
  const float* queries[MAX_QUERIES];
  float* outputs[MAX_QUERIES];  // value_stride floats each
  int64_t lengths[MAX_QUERIES];  // keys to attend to, at least 1
  int count;
  const void* keys;
  const void* values;
  bool bf16;
  int64_t block_stride_k, block_stride_v;  // from one block to the next in the pool, in elements
  const int32_t* blocks;
  int64_t head_dim, value_stride;
  float scale;
  float* scores;  // MAX_QUERIES x score_stride
  int64_t score_stride;
};

struct RowStats {
  float max;
  double sum;       // of exp(z - max); not a number when a z is not
  double weighted;  // of exp(z - max) * (z - max)
};

constexpr int64_t SUM_BLOCK = 256;  // ids whose weights are summed together

struct Kernels {
  const char* name;
  int vector_width, panel_width, max_rows;
  void (*gemm_f32)(const Gemm&, int64_t first_panel, int64_t last_panel);
  void (*gemm_bf16)(const Gemm&, int64_t first_panel, int64_t last_panel);  // null without the instructions
  void (*gemm_int8)(const Gemm&, int64_t first_panel, int64_t last_panel);  // null without the instructions
  // One row to whole numbers, up to the end of its last group; null without gemm_int8.
  void (*quantise)(const float* x, int64_t count, int8_t* out, Int8Group* groups);
  void (*attend)(const Attention&);
  // out = x / rms(x) * weight over width entries (a multiple of vector_width, zero past `size`).
  void (*rms_norm)(const float* x, const float* weight, int64_t width, int64_t size, float eps, void* out, bool bf16);
  void (*to_activation)(const float* x, int64_t count, void* out, bool bf16);
  // w = exp(z - max), sums over blocks of SUM_BLOCK ids; z has `count` entries.
  RowStats (*row_stats)(const float* z, int64_t count, float* w, double* sums);
  // sum of w where z > bound, and of all w
  double (*sum_above)(const float* z, const float* w, int64_t count, float bound);
  void (*divide)(float* z, int64_t count, float by);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_vnni_kernels();
const Kernels& avx512_bf16_kernels();
#endif

// The best table this processor can run, or the one named ("portable", "avx2", ...); null for an unknown name or one
// the processor lacks.
const Kernels* choose_kernels(const char* name);

static inline uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 64);  // stays not-a-number
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);                // to nearest, ties to even
}

}  // namespace native
