// The sampling state of slots: what a request asked for and what its penalties must remember.
#include <stdexcept>

#include "sampler.h"

namespace native {

void NgramRecord::begin(int64_t size) {
  size_ = size;
  recent_.clear();
  followers_.clear();
}

std::string NgramRecord::key() const { return std::string((const char*)recent_.data(), recent_.size() * 4); }

void NgramRecord::append(int32_t token) {
  if ((int64_t)recent_.size() == size_ - 1) {
    auto& followers = followers_[key()];
    bool known = false;
    for (int32_t other : followers) known = known || other == token;
    if (!known) followers.push_back(token);
  }
  recent_.push_back(token);
  if ((int64_t)recent_.size() >= size_) recent_.erase(recent_.begin());
}

const std::vector<int32_t>* NgramRecord::banned() const {
  if ((int64_t)recent_.size() < size_ - 1) return nullptr;
  const auto found = followers_.find(key());
  return found == followers_.end() ? nullptr : &found->second;
}

void Slot::see(int32_t token) {
  if (is_seen[(size_t)token]) return;
  is_seen[(size_t)token] = 1;
  seen.push_back(token);
}

void Slot::count(int32_t token) {
  if (counts[(size_t)token] == 0.0f) counted.push_back(token);
  counts[(size_t)token] += 1.0f;
}

Sampler::Sampler(const Kernels& kernels, int64_t max_slots, int64_t vocab_size)
    : kernels_(kernels), vocab_size_(vocab_size), slots_((size_t)max_slots) {}

void Sampler::add(int64_t index, const SamplingParams& params, const int32_t* prompt, int64_t num_prompt,
                  const int32_t* output, int64_t num_output) {
  Slot slot;
  slot.active = true;
  slot.params = params;
  slot.num_generated = num_output;
  for (int32_t i = 0; i < params.num_biases; ++i) {
    const int32_t id = params.bias_ids[i];
    if (id < 0 || id >= vocab_size_)
      throw std::invalid_argument("logit_bias has token id " + std::to_string(id) + ": give ids below " +
                                  std::to_string(vocab_size_));
    slot.bias.emplace_back(id, params.bias_values[i]);
  }
  slot.params.bias_ids = nullptr;
  slot.params.bias_values = nullptr;
  const bool repeats = params.repetition_penalty != 1.0f;
  const bool counts = params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f;
  if (repeats) slot.is_seen.resize((size_t)vocab_size_);
  if (counts) slot.counts.resize((size_t)vocab_size_);
  slot.ngrams.begin(params.ngram_size);
  for (int64_t i = 0; i < num_prompt + num_output; ++i) {
    const int32_t token = i < num_prompt ? prompt[i] : output[i - num_prompt];
    if (token < 0 || token >= vocab_size_)
      throw std::invalid_argument("prompt_ids has token id " + std::to_string(token) + ": give ids below " +
                                  std::to_string(vocab_size_));
    if (repeats) slot.see(token);
    if (counts && i >= num_prompt) slot.count(token);
    if (params.ngram_size > 0) slot.ngrams.append(token);
  }
  slots_[(size_t)index] = std::move(slot);
}

void Sampler::remove(int64_t slot) { slots_[(size_t)slot] = Slot(); }

// Step 2 of the rule.
void Sampler::process(const Slot& slot, float* z) const {
  const SamplingParams& p = slot.params;
  for (const auto& [id, amount] : slot.bias) z[id] += amount;
  for (int32_t id : slot.seen) z[id] = z[id] < 0 ? z[id] * p.repetition_penalty : z[id] / p.repetition_penalty;
  if (p.ngram_size > 0) {
    const auto* banned = slot.ngrams.banned();
    if (banned != nullptr && (int64_t)banned->size() < vocab_size_)
      for (int32_t id : *banned) z[id] = -__builtin_inff();
  }
  for (int32_t id : slot.counted) z[id] -= p.frequency_penalty * slot.counts[(size_t)id] + p.presence_penalty;
}

}  // namespace native
