// Drawing tokens from logits by the rule in serve/engine/sampling.py's docstring, and each slot's sampling state.
#pragma once
#include <stdint.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace native {

struct SamplingParams {  // the binding mirrors it field by field
  uint64_t seed;
  double top_p, typical_p;
  float temperature, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  int32_t top_k, ngram_size, num_logprobs, num_biases, padding;
  const int32_t* bias_ids;
  const float* bias_values;
};

struct Drawn {
  int32_t token;
  float logprob, entropy;
};

// Which tokens followed each (n - 1)-gram of one sequence.
class NgramRecord {
 public:
  void begin(int64_t size);
  void append(int32_t token);
  const std::vector<int32_t>* banned() const;  // null: none; each id once

 private:
  std::string key() const;
  int64_t size_ = 0;
  std::vector<int32_t> recent_;
  std::unordered_map<std::string, std::vector<int32_t>> followers_;
};

struct Slot {
  bool active = false;
  SamplingParams params = {};
  int64_t num_generated = 0;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<uint8_t> is_seen;  // by id; only with a repetition penalty
  std::vector<int32_t> seen;     // prompt and output, each id once
  std::vector<float> counts;     // by id, of generated tokens; only with a frequency or presence penalty
  std::vector<int32_t> counted;
  NgramRecord ngrams;

  void see(int32_t token);
  void count(int32_t token);
};

// What one thread needs while it draws.
struct DrawScratch {
  Buffer<float> z, w, w_b;
  Buffer<double> sums;
  std::vector<int32_t> ids;
  std::vector<float> best;
};

class Sampler {
 public:
  Sampler(const Kernels& kernels, int64_t max_slots, int64_t vocab_size);
  // Throws std::invalid_argument.
  void add(int64_t slot, const SamplingParams& params, const int32_t* prompt, int64_t num_prompt, const int32_t* output,
           int64_t num_output);
  void remove(int64_t slot);
  bool is_active(int64_t slot) const { return slots_[(size_t)slot].active; }
  int64_t num_logprobs(int64_t slot) const { return slots_[(size_t)slot].params.num_logprobs; }
  void prepare(DrawScratch& scratch) const;
  // Draw from vocab_size logits and note the token. top_ids, top_logprobs: room for params.num_logprobs entries,
  // unused when that is 0. Throws std::domain_error when the logits hold a not-a-number.
  Drawn draw(int64_t slot, const float* logits, DrawScratch& scratch, int32_t* top_ids, float* top_logprobs);

 private:
  void process(const Slot& slot, float* z) const;
  const Kernels& kernels_;
  int64_t vocab_size_;
  std::vector<Slot> slots_;
};

}  // namespace native
