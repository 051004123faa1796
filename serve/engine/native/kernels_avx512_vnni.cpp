// The kernels compiled for: avx512_vnni. The build gives this file its flags.
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>

namespace native {
namespace avx512_vnni_only {
#include "vector.h"
#include "gemm_kernels.h"
#include "int8_kernels.h"
#include "attention_kernels.h"
#include "row_kernels.h"
}  // namespace avx512_vnni_only

const Kernels& avx512_vnni_kernels() {
  using namespace avx512_vnni_only;
  static constexpr Kernels table = {"avx512_vnni", VW, NR, MAX_ROWS, gemm_f32, gemm_bf16, gemm_int8, quantise,
                                    attend, rms_norm, to_activation, row_stats, sum_above, divide};
  return table;
}

}  // namespace native
#endif
