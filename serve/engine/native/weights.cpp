#include "weights.h"

#include <cmath>
#include <vector>

namespace native {
namespace {

float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

float from_f16(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31, fraction = half & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return std::ldexp((float)fraction, -24) * (sign ? -1.0f : 1.0f);
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace

int64_t stored_bytes(Stored type) { return type == Stored::f32 ? 4 : 2; }

float stored_value(const void* data, Stored type, int64_t index) {
  if (type == Stored::f32) {
    float x;
    memcpy(&x, (const char*)data + index * 4, 4);  // a file may hold it at any address
    return x;
  }
  uint16_t half;
  memcpy(&half, (const char*)data + index * 2, 2);
  return type == Stored::bf16 ? from_bits((uint32_t)half << 16) : from_f16(half);
}

void stored_values(const void* data, Stored type, int64_t start, int64_t count, float* out) {
  if (type == Stored::f32) memcpy(out, (const char*)data + start * 4, (size_t)count * 4);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = stored_value(data, type, start + i);
}

void Packed::make(const Kernels& kernels, Format format, int64_t outputs, int64_t inputs) {
  width_ = kernels.panel_width;
  format_ = format;
  inputs_ = inputs;
  panels_ = (outputs + width_ - 1) / width_;
  const int64_t together = format == Format::int8 ? 4 : format == Format::bf16 ? 2 : 1;  // inputs of one instruction
  bytes_.make(panels_ * width_ * ((inputs + together - 1) / together) * 4);
  if (format == Format::int8) scales_.make(panels_ * width_);
}

void Packed::put_row(const void* source, Stored type, int64_t row, int64_t panel, int64_t column) {
  thread_local std::vector<float> values;
  values.resize((size_t)inputs_);
  stored_values(source, type, row * inputs_, inputs_, values.data());
  if (format_ == Format::int8) return put_int8(values.data(), panel, column);
  if (format_ == Format::bf16) {
    uint16_t* out = (uint16_t*)bytes_.data() + panel * width_ * ((inputs_ + 1) / 2) * 2 + column * 2;
    for (int64_t k = 0; k < inputs_; ++k) out[k / 2 * width_ * 2 + k % 2] = to_bf16(values[(size_t)k]);
  } else {
    float* out = (float*)bytes_.data() + panel * width_ * inputs_ + column;
    for (int64_t k = 0; k < inputs_; ++k) out[k * width_] = values[(size_t)k];
  }
}

void Packed::put_int8(const float* values, int64_t panel, int64_t column) {
  float largest = 0.0f, broken = 0.0f;
  for (int64_t k = 0; k < inputs_; ++k) {
    largest = std::fmax(largest, std::fabs(values[k]));
    broken += values[k] * 0.0f;  // not a number where a weight is not, or is infinite
  }
  const bool whole = broken == 0.0f && largest >= INT8_LEAST;
  const float inverse = whole ? 127.0f / largest : 0.0f;
  uint8_t* out = (uint8_t*)bytes_.data() + panel * width_ * ((inputs_ + 3) / 4) * 4 + column * 4;
  for (int64_t k = 0; k < inputs_; ++k)
    out[k / 4 * width_ * 4 + k % 4] = (uint8_t)(128 + (whole ? std::lrint(values[k] * inverse) : 0));
  scales_[panel * width_ + column] = largest / 127.0f + broken;  // so that no broken weight goes unseen
}

void Packed::fill(const void* source, Stored type, int64_t rows, int64_t first) {
  for (int64_t row = 0; row < rows; ++row) put_row(source, type, row, (first + row) / width_, (first + row) % width_);
}

void Packed::fill_half(const void* source, Stored type, int64_t rows, int half) {
  const int64_t width = width_ / 2;
  for (int64_t row = 0; row < rows; ++row) put_row(source, type, row, row / width, row % width + half * width);
}

}  // namespace native
