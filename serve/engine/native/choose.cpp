#include <string.h>

#include "kernels.h"

namespace native {
namespace {

struct Choice {
  const Kernels& (*table)();
  bool runs;
};

}  // namespace

const Kernels* choose_kernels(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  const Choice choices[] = {{avx512_bf16_kernels, bf16}, {avx512_vnni_kernels, vnni}, {avx512_kernels, avx512},
                            {avx2_kernels, avx2}, {portable_kernels, true}};
#else
  const Choice choices[] = {{portable_kernels, true}};
#endif
  for (const Choice& choice : choices)
    if (choice.runs && (name == nullptr || name[0] == 0 || strcmp(name, choice.table().name) == 0))
      return &choice.table();
  return nullptr;
}

}  // namespace native
