// The kernels compiled for: portable. The build gives this file its flags.
#include "kernels.h"
namespace native {
namespace portable_only {
#include "vector.h"
#include "gemm_kernels.h"
#include "int8_kernels.h"
#include "attention_kernels.h"
#include "row_kernels.h"
}  // namespace portable_only

const Kernels& portable_kernels() {
  using namespace portable_only;
  static constexpr Kernels table = {"portable", VW, NR, MAX_ROWS, gemm_f32, gemm_bf16, gemm_int8, quantise,
                                    attend, rms_norm, to_activation, row_stats, sum_above, divide};
  return table;
}

}  // namespace native
