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

// What a model's matrices are kept in. int8: one scale an output, its largest weight at 127; see Int8Scales.
enum class Format : int32_t { f32 = 0, bf16 = 1, int8 = 2 };

// A matrix (outputs x inputs) in panels of panel_width outputs. See gemm_kernels.h.
class Packed {
 public:
  void make(const Kernels& kernels, Format format, int64_t outputs, int64_t inputs);
  // Rows 0..rows-1 of a row-major matrix become outputs first, first + 1, ...
  void fill(const void* source, Stored type, int64_t rows, int64_t first);
  // The same into the lower (half 0) or the upper (half 1) half of each panel.
  void fill_half(const void* source, Stored type, int64_t rows, int half);

  int64_t panels() const { return panels_; }
  int64_t inputs() const { return inputs_; }
  const void* data() const { return bytes_.data(); }
  const float* scales() const { return scales_.data(); }  // by output; int8 only

 private:
  void put_row(const void* source, Stored type, int64_t row, int64_t panel, int64_t column);
  void put_int8(const float* values, int64_t panel, int64_t column);
  Buffer<char> bytes_;
  Buffer<float> scales_;
  int64_t panels_ = 0, inputs_ = 0, width_ = 0;
  Format format_ = Format::f32;
};

}  // namespace native
