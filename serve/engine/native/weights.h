// Weights as the kernels want them. Made once from row-major matrices in any stored type.
#pragma once
#include <stdint.h>

#include "buffer.h"
#include "kernels.h"

namespace native {

enum class Stored : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

int64_t stored_bytes(Stored type);
float stored_value(const void* data, Stored type, int64_t index);
// count numbers as floats
void stored_values(const void* data, Stored type, int64_t start, int64_t count, float* out);

// A matrix (outputs x inputs) in panels of panel_width outputs. See gemm_kernels.h.
class Packed {
 public:
  void make(const Kernels& kernels, bool bf16, int64_t outputs, int64_t inputs);
  // Rows 0..rows-1 of a row-major matrix become outputs first, first + 1, ...
  void fill(const void* source, Stored type, int64_t rows, int64_t first);
  // The same into the lower (half 0) or the upper (half 1) half of each panel.
  void fill_half(const void* source, Stored type, int64_t rows, int half);

  int64_t panels() const { return panels_; }
  int64_t inputs() const { return inputs_; }
  const void* data() const { return bf16_ ? (const void*)halves_.data() : (const void*)floats_.data(); }

 private:
  void put_row(const void* source, Stored type, int64_t row, int64_t panel, int64_t column);
  Buffer<float> floats_;
  Buffer<uint16_t> halves_;
  int64_t panels_ = 0, inputs_ = 0, width_ = 0;
  bool bf16_ = false;
};

}  // namespace native
