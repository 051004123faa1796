// A Llama decoder over a block pool: weights, keys and values, and one step for a whole batch.
#pragma once
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "pool.h"
#include "sampler.h"
#include "weights.h"

namespace native {

struct Config {  // the binding mirrors it field by field
  int32_t vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size;
  int32_t max_model_len, max_slots, num_blocks, num_threads, format;
  float norm_eps;
  int32_t padding;
  const float* cosines;  // (max_model_len, head_dim / 2)
  const float* sines;
  const char* kernels;  // name of the instruction set, or null for the best
};

enum class Part : int32_t { embedding, head, final_norm, attention_norm, q, k, v, o, mlp_norm, gate, up, down };
constexpr int NUM_PARTS = 12;

struct Batch {  // the binding mirrors it field by field; see StepBatch in serve/engine/runner.py
  int64_t num_rows, num_token_ids, num_table_slots, table_width, num_samples;
  const int32_t *slots, *num_tokens, *start_positions, *token_ids;
  const uint8_t* sample;
  const int32_t* block_tables;
};

struct Results {  // num_samples entries each
  int32_t* token_ids;
  float* logprobs;
  float* entropies;
  int32_t* top_ids;     // (num_samples, top_width)
  float* top_logprobs;  // (num_samples, top_width)
  int64_t top_width;
  float* logits;  // null, or (num_samples, vocab_size): a copy, for tests
  double sample_seconds;
};

struct Layer {
  Buffer<float> attention_norm, mlp_norm;
  Packed qkv, o, gate_up, down;
  Buffer<char> keys, values;  // [block][kv head][head_dim][16], [block][kv head][16][value_stride]
};

// One token that is computed: where it stands.
struct Token {
  int32_t id, position;
  const int32_t* blocks;
};

// Consecutive tokens of one request that attend, as rows of the activations.
struct Run {
  int64_t first, count;
};

class Model {
 public:
  explicit Model(const Config& config);  // throws std::invalid_argument
  void set_part(Part part, int64_t layer, const void* data, Stored type, int64_t rows, int64_t columns);
  void check_complete() const;
  void step(const Batch& batch, Results& results);
  Sampler& sampler() { return sampler_; }
  const Config& config() const { return config_; }
  const char* kernels_name() const { return kernels_.name; }

 private:
  void check(const Batch& batch, const Results& results) const;
  void lay_out(const Batch& batch);
  void reserve(int64_t num_tokens, int64_t num_samples);
  void embed();
  void run_layer(Layer& layer, bool is_last);
  void norm(const float* weight, int64_t rows);
  const void* quantise(const void* a, int64_t lda, int64_t count, int64_t rows);
  void multiply(const Packed& matrix, const void* a, int64_t lda, void* c, int64_t ldc, int64_t rows, Epilogue epilogue);
  void rotate_and_keep(Layer& layer);
  void keep_token(Layer& layer, int64_t token);
  void rotate(float* heads, int64_t count, int64_t position) const;
  void attend(const Layer& layer);
  void attend_tile(const Layer& layer, int64_t first, int64_t tokens, int64_t kv_head, int64_t head, int64_t heads,
                   int thread);
  void keep_only_sampled();
  void draw(const Batch& batch, Results& results);
  template <class Body>
  void over_rows(int64_t rows, int64_t floats_each, const Body& body);
  char* act_row(Buffer<char>& buffer, int64_t row, int64_t stride) { return buffer.data() + row * stride * act_bytes_; }

  const Config config_;
  const Kernels& kernels_;
  const Format format_;
  const bool bf16_;  // activations too; beside int8 weights they are floats until a product quantises them
  const int64_t act_bytes_;
  const bool kept_bf16_;  // keys and values
  const int64_t kept_bytes_;
  int64_t value_stride_, hidden_width_, x_stride_, qkv_stride_, attended_stride_, inner_stride_, logits_stride_;
  int64_t groups_each_, whole_stride_;
  std::vector<uint8_t> given_;
  Stored embedding_type_ = Stored::f32;
  Buffer<char> embedding_;
  Buffer<float> cosines_, sines_, final_norm_;
  Packed head_;
  std::vector<Layer> layers_;
  Sampler sampler_;
  Pool pool_;
  // The step in progress. x: the residual stream. Everything grows to the largest step seen.
  std::vector<Token> tokens_;
  std::vector<Run> runs_;
  std::vector<int64_t> sampled_;  // the token of each sampling row
  Buffer<float> x_, qkv_, logits_;
  Buffer<char> normed_, attended_, inner_;
  Buffer<int8_t> whole_;  // the quantised input of a product: whole_stride_ for each row, and groups_each_ groups
  Buffer<Int8Group> groups_;
  std::vector<Buffer<float>> scores_, outputs_;  // by thread
  std::vector<DrawScratch> scratch_;
};

template <class Body>
void Model::over_rows(int64_t rows, int64_t floats_each, const Body& body) {
  const int64_t grain = floats_each < 8192 ? 8192 / floats_each : 1;
  pool_.run((rows + grain - 1) / grain, [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * grain < rows ? (chunk + 1) * grain : rows;
    for (int64_t row = chunk * grain; row < end; ++row) body(row);
  });
}

}  // namespace native
