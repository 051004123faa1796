// Making a model: sizes, weights, pools.
#include "model.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace native {
namespace {

const char* const PART_NAMES[NUM_PARTS] = {"embedding", "head", "final_norm", "attention_norm", "q",  "k",
                                           "v",         "o",    "mlp_norm",   "gate",           "up", "down"};
constexpr int64_t BLOCK = 16;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

Config checked(const Config& c) {
  const struct {
    const char* name;
    int32_t value, most;
  } sizes[] = {{"vocab_size", c.vocab_size, 1 << 24},       {"hidden_size", c.hidden_size, 1 << 20},
               {"num_layers", c.num_layers, 1 << 12},       {"num_heads", c.num_heads, 1 << 12},
               {"num_kv_heads", c.num_kv_heads, 1 << 12},   {"head_dim", c.head_dim, 1 << 12},
               {"intermediate_size", c.intermediate_size, 1 << 22}, {"max_model_len", c.max_model_len, 1 << 24},
               {"max_slots", c.max_slots, 1 << 16},         {"num_blocks", c.num_blocks, 1 << 28},
               {"num_threads", c.num_threads, 1024}};
  for (const auto& size : sizes)
    if (size.value < 1 || size.value > size.most)
      refuse(std::string(size.name) + " is " + std::to_string(size.value) + ": give a number from 1 to " +
             std::to_string(size.most));
  if (c.num_heads % c.num_kv_heads != 0) refuse("num_heads is not a multiple of num_kv_heads");
  if (c.format < 0 || c.format > 2) refuse("format is " + std::to_string(c.format) + ": give a number from 0 to 2");
  if (c.head_dim % 2 != 0) refuse("head_dim is odd: rotary positions need pairs");
  if (c.cosines == nullptr || c.sines == nullptr) refuse("cosines or sines are missing");
  return c;
}

const Kernels& kernels_for(const Config& c) {
  const Kernels* kernels = choose_kernels(c.kernels);
  if (kernels == nullptr) refuse(std::string("kernels is '") + c.kernels + "': this processor or library lacks them");
  if ((Format)c.format == Format::bf16 && kernels->gemm_bf16 == nullptr)
    refuse("dtype is 'bfloat16': this processor has no AVX-512 BF16 instructions; choose float32");
  if ((Format)c.format == Format::int8 && kernels->gemm_int8 == nullptr)
    refuse("dtype is 'int8': this processor has no AVX-512 VNNI instructions; choose auto");
  return *kernels;
}

}  // namespace

Model::Model(const Config& config)
    : config_(checked(config)), kernels_(kernels_for(config)), format_((Format)config.format),
      bf16_(format_ == Format::bf16), act_bytes_(bf16_ ? 2 : 4), kept_bf16_(format_ != Format::f32),
      kept_bytes_(kept_bf16_ ? 2 : 4),
      given_((size_t)(config.num_layers * NUM_PARTS)), layers_((size_t)config.num_layers),
      sampler_(kernels_, config.max_slots, config.vocab_size), pool_(config.num_threads) {
  const Config& c = config_;
  const int64_t lanes = kernels_.vector_width, panel = kernels_.panel_width;
  // A stride that is a power of two would put all rows of a tile into the same few sets of the first cache.
  constexpr int64_t SKEW = 32;
  const int64_t queries = (int64_t)c.num_heads * c.head_dim, pairs = (int64_t)c.num_kv_heads * c.head_dim;
  value_stride_ = round_up(c.head_dim, lanes);
  hidden_width_ = round_up(c.hidden_size, lanes);
  x_stride_ = round_up(c.hidden_size, panel) + SKEW;
  qkv_stride_ = round_up(queries + 2 * pairs, panel) + SKEW;
  attended_stride_ = round_up(queries, panel) + SKEW;
  inner_stride_ = round_up(c.intermediate_size, lanes) + SKEW;
  logits_stride_ = round_up(c.vocab_size, panel) + SKEW;
  const int64_t most_inputs = std::max({(int64_t)c.hidden_size, queries, (int64_t)c.intermediate_size});
  groups_each_ = round_up(most_inputs, INT8_GROUP) / INT8_GROUP;
  whole_stride_ = groups_each_ * INT8_GROUP + 2 * SKEW;
  const int64_t angles = (int64_t)c.max_model_len * (c.head_dim / 2);
  cosines_.make(angles);
  sines_.make(angles);
  memcpy(cosines_.data(), c.cosines, (size_t)angles * sizeof(float));
  memcpy(sines_.data(), c.sines, (size_t)angles * sizeof(float));
  final_norm_.make(hidden_width_);
  head_.make(kernels_, format_, c.vocab_size, c.hidden_size);
  for (Layer& layer : layers_) {
    layer.attention_norm.make(hidden_width_);
    layer.mlp_norm.make(hidden_width_);
    layer.qkv.make(kernels_, format_, queries + 2 * pairs, c.hidden_size);
    layer.o.make(kernels_, format_, c.hidden_size, queries);
    layer.gate_up.make(kernels_, format_, 2 * round_up(c.intermediate_size, lanes), c.hidden_size);
    layer.down.make(kernels_, format_, c.hidden_size, c.intermediate_size);
    layer.keys.make((int64_t)c.num_blocks * c.num_kv_heads * c.head_dim * BLOCK * kept_bytes_);
    layer.values.make((int64_t)c.num_blocks * c.num_kv_heads * BLOCK * value_stride_ * kept_bytes_);
  }
  scores_.resize((size_t)pool_.num_threads());
  outputs_.resize((size_t)pool_.num_threads());
  scratch_.resize((size_t)pool_.num_threads());
  for (size_t t = 0; t < scores_.size(); ++t) {
    scores_[t].make(MAX_QUERIES * round_up(c.max_model_len, BLOCK));
    outputs_[t].make(MAX_QUERIES * value_stride_);
    sampler_.prepare(scratch_[t]);
  }
}

void Model::set_part(Part part, int64_t layer, const void* data, Stored type, int64_t rows, int64_t columns) {
  const int p = (int)part;
  if (p < 0 || p >= NUM_PARTS) refuse("part " + std::to_string(p) + " is unknown");
  const bool whole = part == Part::embedding || part == Part::head || part == Part::final_norm;
  if (layer < 0 || layer >= (whole ? 1 : config_.num_layers)) refuse("layer " + std::to_string(layer) + " is unknown");
  if ((int)type < 0 || (int)type > 2) refuse("stored type " + std::to_string((int)type) + " is unknown");
  if (data == nullptr) refuse("data is missing");
  const Config& c = config_;
  const int64_t queries = (int64_t)c.num_heads * c.head_dim, pairs = (int64_t)c.num_kv_heads * c.head_dim;
  const int64_t h = c.hidden_size, inner = c.intermediate_size, v = c.vocab_size;
  const int64_t shapes[NUM_PARTS][2] = {{v, h}, {v, h}, {1, h}, {1, h}, {queries, h}, {pairs, h},
                                        {pairs, h}, {h, queries}, {1, h}, {inner, h}, {inner, h}, {h, inner}};
  if (rows != shapes[p][0] || columns != shapes[p][1])
    refuse(std::string(PART_NAMES[p]) + " is " + std::to_string(rows) + " x " + std::to_string(columns) + ", not " +
           std::to_string(shapes[p][0]) + " x " + std::to_string(shapes[p][1]) + " as config.json says");
  Layer& l = layers_[(size_t)layer];
  switch (part) {
    case Part::embedding:
      embedding_.make(v * h * stored_bytes(type));
      memcpy(embedding_.data(), data, (size_t)(v * h * stored_bytes(type)));
      embedding_type_ = type;
      break;
    case Part::head: head_.fill(data, type, v, 0); break;
    case Part::final_norm: stored_values(data, type, 0, h, final_norm_.data()); break;
    case Part::attention_norm: stored_values(data, type, 0, h, l.attention_norm.data()); break;
    case Part::q: l.qkv.fill(data, type, queries, 0); break;
    case Part::k: l.qkv.fill(data, type, pairs, queries); break;
    case Part::v: l.qkv.fill(data, type, pairs, queries + pairs); break;
    case Part::o: l.o.fill(data, type, h, 0); break;
    case Part::mlp_norm: stored_values(data, type, 0, h, l.mlp_norm.data()); break;
    case Part::gate: l.gate_up.fill_half(data, type, inner, 0); break;
    case Part::up: l.gate_up.fill_half(data, type, inner, 1); break;
    case Part::down: l.down.fill(data, type, h, 0); break;
  }
  given_[(size_t)(layer * NUM_PARTS + p)] = 1;
}

void Model::check_complete() const {
  for (int64_t layer = 0; layer < config_.num_layers; ++layer)
    for (int p = 0; p < NUM_PARTS; ++p)
      if (given_[(size_t)(layer * NUM_PARTS + p)] == 0 && (layer == 0 || p > (int)Part::final_norm))
        refuse(std::string("weights of ") + PART_NAMES[p] + " of layer " + std::to_string(layer) + " are missing");
}

}  // namespace native
