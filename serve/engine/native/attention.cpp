// Rotary positions, the key-value pool, and attention split into tiles.
#include <vector>

#include "model.h"

namespace native {
namespace {

constexpr int64_t BLOCK = 16;

struct Tile {
  int64_t first, tokens, kv_head, head, heads;
};

}  // namespace

void Model::rotate(float* heads, int64_t count, int64_t position) const {
  const int64_t half = config_.head_dim / 2;
  const float* cosines = cosines_.data() + position * half;
  const float* sines = sines_.data() + position * half;
  for (int64_t head = 0; head < count; ++head) {
    float* low = heads + head * config_.head_dim;
    float* high = low + half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a * cosines[i] - b * sines[i];
      high[i] = b * cosines[i] + a * sines[i];
    }
  }
}

void Model::rotate_and_keep(Layer& layer) {
  over_rows((int64_t)tokens_.size(), qkv_stride_, [&](int64_t t) { keep_token(layer, t); });
}

void Model::keep_token(Layer& layer, int64_t t) {
  const int64_t dim = config_.head_dim, kv_heads = config_.num_kv_heads;
  const Token& token = tokens_[(size_t)t];
  float* q = qkv_.data() + t * qkv_stride_;
  float* k = q + config_.num_heads * dim;
  const float* v = k + kv_heads * dim;
  rotate(q, config_.num_heads + kv_heads, token.position);
  const int64_t block = token.blocks[token.position / BLOCK], offset = token.position % BLOCK;
  for (int64_t head = 0; head < kv_heads; ++head) {
    char* key = layer.keys.data() + ((block * kv_heads + head) * dim * BLOCK + offset) * kept_bytes_;
    for (int64_t d = 0; d < dim; ++d, key += BLOCK * kept_bytes_) {
      const float number = k[head * dim + d];
      const uint16_t rounded = to_bf16(number);
      kept_bf16_ ? memcpy(key, &rounded, sizeof rounded) : memcpy(key, &number, sizeof number);
    }
    char* value = layer.values.data() + ((block * kv_heads + head) * BLOCK + offset) * value_stride_ * kept_bytes_;
    kernels_.to_activation(v + head * dim, dim, value, kept_bf16_);
  }
}

void Model::attend(const Layer& layer) {
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  const int64_t heads = group < MAX_QUERIES ? group : MAX_QUERIES, tokens = MAX_QUERIES / heads;
  std::vector<Tile> tiles;
  for (const Run& run : runs_)
    for (int64_t i = 0; i < run.count; i += tokens)
      for (int64_t kv_head = 0; kv_head < config_.num_kv_heads; ++kv_head)
        for (int64_t head = 0; head < group; head += heads)
          tiles.push_back({run.first + i, run.count - i < tokens ? run.count - i : tokens, kv_head, head,
                           group - head < heads ? group - head : heads});
  const int64_t most = pool_.num_threads() == 1 ? 1 : pool_.num_threads() * 8, total = (int64_t)tiles.size();
  const int64_t tasks = most < total ? most : total;
  pool_.run(tasks, [&](int64_t task, int thread) {
    for (int64_t i = task * total / tasks; i < (task + 1) * total / tasks; ++i) {
      const Tile& tile = tiles[(size_t)i];
      attend_tile(layer, tile.first, tile.tokens, tile.kv_head, tile.head, tile.heads, thread);
    }
  });
}

void Model::attend_tile(const Layer& layer, int64_t first, int64_t num_tokens, int64_t kv_head, int64_t head,
                        int64_t heads, int thread) {
  const int64_t dim = config_.head_dim, kv_heads = config_.num_kv_heads, group = config_.num_heads / kv_heads;
  Attention t = {};
  char* targets[MAX_QUERIES];
  for (int64_t i = first; i < first + num_tokens; ++i)
    for (int64_t h = head; h < head + heads; ++h, ++t.count) {
      const int64_t column = (kv_head * group + h) * dim;
      t.queries[t.count] = qkv_.data() + i * qkv_stride_ + column;
      t.outputs[t.count] = outputs_[(size_t)thread].data() + t.count * value_stride_;
      t.lengths[t.count] = tokens_[(size_t)i].position + 1;
      targets[t.count] = act_row(attended_, i, attended_stride_) + column * act_bytes_;
    }
  t.keys = layer.keys.data() + kv_head * dim * BLOCK * kept_bytes_;
  t.values = layer.values.data() + kv_head * BLOCK * value_stride_ * kept_bytes_;
  t.bf16 = kept_bf16_;
  t.block_stride_k = kv_heads * dim * BLOCK;
  t.block_stride_v = kv_heads * BLOCK * value_stride_;
  t.blocks = tokens_[(size_t)first].blocks;
  t.head_dim = dim;
  t.value_stride = value_stride_;
  t.scale = 1.0f / __builtin_sqrtf((float)dim);
  t.scores = scores_[(size_t)thread].data();
  t.score_stride = scores_[(size_t)thread].count() / MAX_QUERIES;
  kernels_.attend(t);
  for (int q = 0; q < t.count; ++q) kernels_.to_activation(t.outputs[q], dim, targets[q], bf16_);
}

}  // namespace native
