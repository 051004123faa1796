// One step: what the engine asks is checked, laid out token by token, and computed layer by layer.
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "model.h"

namespace native {
namespace {

constexpr int64_t BLOCK = 16;

void require(bool holds, const char* what, int64_t value, const char* remedy) {
  if (!holds) throw std::invalid_argument(std::string(what) + " is " + std::to_string(value) + ": " + remedy);
}

}  // namespace

void Model::check(const Batch& b, const Results& results) const {
  require(b.num_rows >= 0 && b.num_rows <= config_.max_slots, "num_rows", b.num_rows, "at most one row for a slot");
  require(b.num_table_slots == config_.max_slots, "num_table_slots", b.num_table_slots, "not max_slots");
  require(b.table_width * BLOCK >= config_.max_model_len, "table_width", b.table_width, "too few for max_model_len");
  std::vector<uint8_t> used((size_t)config_.max_slots);
  int64_t at = 0, samples = 0;
  for (int64_t r = 0; r < b.num_rows; ++r) {
    const int64_t slot = b.slots[r], count = b.num_tokens[r], start = b.start_positions[r];
    require(slot >= 0 && slot < config_.max_slots, "slot", slot, "not below max_slots");
    require(sampler_.is_active(slot), "slot", slot, "no request was added there");
    require(used[(size_t)slot] == 0, "slot", slot, "it has two rows in one batch");
    used[(size_t)slot] = 1;
    require(count >= 1 && at + count <= b.num_token_ids, "num_tokens", count, "not as many token ids");
    require(start >= 0 && start + count <= config_.max_model_len, "start_position", start, "past max_model_len");
    for (int64_t block = 0; block * BLOCK < start + count; ++block) {
      const int32_t id = b.block_tables[slot * b.table_width + block];
      require(id >= 0 && id < config_.num_blocks, "block id", id, "not below num_blocks");
    }
    at += count;
    samples += b.sample[r] != 0;
    const int64_t top = sampler_.num_logprobs(slot);
    require(b.sample[r] == 0 || top <= results.top_width, "num_logprobs", top, "more than the results have room for");
  }
  require(at == b.num_token_ids, "num_token_ids", b.num_token_ids, "not the sum of num_tokens");
  require(samples == b.num_samples, "num_samples", b.num_samples, "not the number of rows that sample");
  for (int64_t t = 0; t < at; ++t)
    require(b.token_ids[t] >= 0 && b.token_ids[t] < config_.vocab_size, "token id", b.token_ids[t],
            "not below vocab_size");
}

void Model::lay_out(const Batch& b) {
  tokens_.clear();
  runs_.clear();
  sampled_.clear();
  for (int64_t r = 0; r < b.num_rows; ++r) {
    const int32_t* blocks = b.block_tables + b.slots[r] * b.table_width;
    const int64_t first = (int64_t)tokens_.size();
    runs_.push_back({first, b.num_tokens[r]});
    for (int32_t i = 0; i < b.num_tokens[r]; ++i)
      tokens_.push_back({b.token_ids[first + i], b.start_positions[r] + i, blocks});
    if (b.sample[r] != 0) sampled_.push_back((int64_t)tokens_.size() - 1);
  }
}

void Model::reserve(int64_t num_tokens, int64_t num_samples) {
  x_.reserve(num_tokens * x_stride_);
  normed_.reserve(num_tokens * x_stride_ * act_bytes_);
  qkv_.reserve(num_tokens * qkv_stride_);
  attended_.reserve(num_tokens * attended_stride_ * act_bytes_);
  inner_.reserve(num_tokens * inner_stride_ * act_bytes_);
  logits_.reserve(num_samples * logits_stride_);
  if (format_ != Format::int8) return;
  whole_.reserve(num_tokens * whole_stride_);
  groups_.reserve(num_tokens * groups_each_);
}

void Model::step(const Batch& batch, Results& results) {
  check(batch, results);
  results.sample_seconds = 0.0;
  if (batch.num_rows == 0) return;
  const Pool::Shift shift(pool_);
  lay_out(batch);
  reserve((int64_t)tokens_.size(), batch.num_samples);
  embed();
  for (Layer& layer : layers_) run_layer(layer, &layer == &layers_.back());
  if (batch.num_samples == 0) return;
  norm(final_norm_.data(), batch.num_samples);
  multiply(head_, normed_.data(), x_stride_, logits_.data(), logits_stride_, batch.num_samples, Epilogue::store);
  const auto started = std::chrono::steady_clock::now();
  draw(batch, results);
  results.sample_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void Model::embed() {
  const int64_t h = config_.hidden_size;
  over_rows((int64_t)tokens_.size(), h, [&](int64_t t) {
    stored_values(embedding_.data(), embedding_type_, tokens_[(size_t)t].id * h, h, x_.data() + t * x_stride_);
  });
}

void Model::run_layer(Layer& layer, bool is_last) {
  int64_t rows = (int64_t)tokens_.size();
  norm(layer.attention_norm.data(), rows);
  multiply(layer.qkv, normed_.data(), x_stride_, qkv_.data(), qkv_stride_, rows, Epilogue::store);
  rotate_and_keep(layer);
  if (is_last) {
    keep_only_sampled();  // what follows in the last layer is read by nobody else
    rows = (int64_t)sampled_.size();
    if (rows == 0) return;
  }
  attend(layer);
  multiply(layer.o, attended_.data(), attended_stride_, x_.data(), x_stride_, rows, Epilogue::add);
  norm(layer.mlp_norm.data(), rows);
  multiply(layer.gate_up, normed_.data(), x_stride_, inner_.data(), inner_stride_, rows, Epilogue::swiglu);
  multiply(layer.down, inner_.data(), inner_stride_, x_.data(), x_stride_, rows, Epilogue::add);
}

void Model::norm(const float* weight, int64_t rows) {
  over_rows(rows, 4 * hidden_width_, [&](int64_t r) {
    kernels_.rms_norm(x_.data() + r * x_stride_, weight, hidden_width_, config_.hidden_size, config_.norm_eps,
                      act_row(normed_, r, x_stride_), bf16_);
  });
}

const void* Model::quantise(const void* a, int64_t lda, int64_t count, int64_t rows) {
  over_rows(rows, count, [&](int64_t r) {
    kernels_.quantise((const float*)a + r * lda, count, whole_.data() + r * whole_stride_,
                      groups_.data() + r * groups_each_);
  });
  return whole_.data();
}

void Model::multiply(const Packed& matrix, const void* a, int64_t lda, void* c, int64_t ldc, int64_t rows,
                     Epilogue epilogue) {
  const Int8Scales scales = {groups_.data(), groups_each_, matrix.scales()};
  Gemm gemm = {matrix.data(), a, c, lda, ldc, rows, matrix.inputs(), matrix.panels(), epilogue, nullptr};
  auto kernel = bf16_ ? kernels_.gemm_bf16 : kernels_.gemm_f32;
  if (format_ == Format::int8) {
    kernel = kernels_.gemm_int8;
    gemm.a = quantise(a, lda, matrix.inputs(), rows);
    gemm.lda = whole_stride_;
    gemm.int8 = &scales;
  }
  const int64_t unit = rows == 1 ? 4 : rows == 2 ? 2 : 1, units = (gemm.panels + unit - 1) / unit;
  const int64_t wanted = pool_.num_threads() == 1 ? 1 : pool_.num_threads() * 8;
  const int64_t tasks = wanted < units ? wanted : units;
  pool_.run(tasks, [&](int64_t task, int) {
    const int64_t first = task * units / tasks * unit, last = (task + 1) * units / tasks * unit;
    kernel(gemm, first, last < gemm.panels ? last : gemm.panels);
  });
}

void Model::keep_only_sampled() {
  for (size_t i = 0; i < sampled_.size(); ++i) {
    const int64_t from = sampled_[i], to = (int64_t)i;
    tokens_[i] = tokens_[(size_t)from];
    if (from == to) continue;
    memcpy(x_.data() + to * x_stride_, x_.data() + from * x_stride_, (size_t)x_stride_ * sizeof(float));
    memcpy(qkv_.data() + to * qkv_stride_, qkv_.data() + from * qkv_stride_, (size_t)qkv_stride_ * sizeof(float));
  }
  tokens_.resize(sampled_.size());
  runs_.clear();
  for (size_t i = 0; i < sampled_.size(); ++i) runs_.push_back({(int64_t)i, 1});
}

void Model::draw(const Batch& batch, Results& results) {
  std::vector<int64_t> slots;
  for (int64_t r = 0; r < batch.num_rows; ++r)
    if (batch.sample[r] != 0) slots.push_back(batch.slots[r]);
  std::vector<std::string> errors(slots.size());
  pool_.run((int64_t)slots.size(), [&](int64_t i, int thread) {
    const float* row = logits_.data() + i * logits_stride_;
    if (results.logits != nullptr)
      memcpy(results.logits + i * config_.vocab_size, row, (size_t)config_.vocab_size * sizeof(float));
    try {
      const Drawn drawn = sampler_.draw(slots[(size_t)i], row, scratch_[(size_t)thread],
                                        results.top_ids + i * results.top_width,
                                        results.top_logprobs + i * results.top_width);
      results.token_ids[i] = drawn.token;
      results.logprobs[i] = drawn.logprob;
      results.entropies[i] = drawn.entropy;
    } catch (const std::exception& error) {  // it must not leave the thread
      errors[(size_t)i] = error.what();
    }
  });
  for (const std::string& error : errors)
    if (!error.empty()) throw std::domain_error(error);
}

}  // namespace native
