// The library's surface: plain C, nothing thrown across it. A function returns 0, or a code below with its message in
// native_last_error(). A model is used by one thread at a time.
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "model.h"

#ifndef NATIVE_SOURCE_HASH
#define NATIVE_SOURCE_HASH "unknown"
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Code { OK = 0, BAD_ARGUMENT = 1, NO_MEMORY = 2, FAILED = 3 };

thread_local std::string last_error;

template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return OK;
  } catch (const std::invalid_argument& error) {
    last_error = error.what();
    return BAD_ARGUMENT;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
    return NO_MEMORY;
  } catch (const std::exception& error) {
    last_error = error.what();
    return FAILED;
  }
}

void need(const void* pointer, const char* name) {
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + " is missing");
}

void need_slot(const native::Model& model, int64_t slot) {
  if (slot < 0 || slot >= model.config().max_slots)
    throw std::invalid_argument("slot is " + std::to_string(slot) + ": give one below max_slots");
}

}  // namespace

EXPORT const char* native_source_hash() { return NATIVE_SOURCE_HASH; }

EXPORT const char* native_last_error() { return last_error.c_str(); }

// The instruction set that would be used, by name; null where the one asked for is not there.
EXPORT const char* native_kernels(const char* name) {
  const native::Kernels* kernels = native::choose_kernels(name);
  return kernels == nullptr ? nullptr : kernels->name;
}

EXPORT int native_create(const native::Config* config, native::Model** model) {
  return guarded([&] {
    need(config, "config");
    need(model, "model");
    *model = new native::Model(*config);
  });
}

EXPORT void native_destroy(native::Model* model) { delete model; }

EXPORT int native_set_part(native::Model* model, int32_t part, int64_t layer, const void* data, int32_t type,
                           int64_t rows, int64_t columns) {
  return guarded([&] {
    need(model, "model");
    model->set_part((native::Part)part, layer, data, (native::Stored)type, rows, columns);
  });
}

EXPORT int native_check_complete(const native::Model* model) {
  return guarded([&] {
    need(model, "model");
    model->check_complete();
  });
}

EXPORT int native_add_request(native::Model* model, int64_t slot, const native::SamplingParams* params,
                              const int32_t* prompt, int64_t num_prompt, const int32_t* output, int64_t num_output) {
  return guarded([&] {
    need(model, "model");
    need(params, "params");
    need_slot(*model, slot);
    if (num_prompt < 0 || num_output < 0 || params->num_biases < 0) throw std::invalid_argument("a count is negative");
    if (num_prompt > 0) need(prompt, "prompt");
    if (num_output > 0) need(output, "output");
    if (params->num_biases > 0) need(params->bias_ids, "bias_ids"), need(params->bias_values, "bias_values");
    model->sampler().add(slot, *params, prompt, num_prompt, output, num_output);
  });
}

EXPORT int native_remove_request(native::Model* model, int64_t slot) {
  return guarded([&] {
    need(model, "model");
    need_slot(*model, slot);
    model->sampler().remove(slot);
  });
}

EXPORT int native_step(native::Model* model, const native::Batch* batch, native::Results* results) {
  return guarded([&] {
    need(model, "model");
    need(batch, "batch");
    need(results, "results");
    if (batch->num_rows > 0) {
      need(batch->slots, "slots"), need(batch->num_tokens, "num_tokens"), need(batch->sample, "sample");
      need(batch->start_positions, "start_positions"), need(batch->token_ids, "token_ids");
      need(batch->block_tables, "block_tables");
    }
    if (batch->num_samples > 0) {
      need(results->token_ids, "results"), need(results->logprobs, "results"), need(results->entropies, "results");
      if (results->top_width > 0) need(results->top_ids, "results"), need(results->top_logprobs, "results");
    }
    model->step(*batch, *results);
  });
}
