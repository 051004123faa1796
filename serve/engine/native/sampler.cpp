// One draw. Steps 3 to 6 of the rule in serve/engine/sampling.py, for one row.
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace native {
namespace {

constexpr int NUM_DRAWS = 16;
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

double uniform(const Slot& slot, int draw) {
  const uint64_t counter = ((uint64_t)slot.num_generated << 32) + (uint64_t)(draw + 1);
  return (double)(mix(mix(slot.params.seed + GOLDEN) + counter * GOLDEN) >> 11) * 0x1p-53;
}

int64_t first_equal(const float* z, int64_t count, float value) {
  for (int64_t start = 0; start < count; start += 64) {
    const int64_t end = std::min(start + 64, count);
    int hits = 0;
    for (int64_t i = start; i < end; ++i) hits += z[i] == value;
    for (int64_t i = start; hits > 0 && i < end; ++i)
      if (z[i] == value) return i;
  }
  return 0;
}

// The candidates of a draw: entries 0..count-1 in ascending order of id. w: weights; w_b: those of B, 0 outside.
struct Candidates {
  const float* z;
  const float* w;
  const float* w_b;
  const int32_t* ids;  // null: entry i is id i
  int64_t count;
  const double* sums;  // of w_b, over blocks of SUM_BLOCK entries
  double total_k;      // of w
};

int64_t invert(const float* w, int64_t count, const double* sums, double u) {
  double total = 0.0;
  for (int64_t start = 0; start < count; start += SUM_BLOCK) total += sums[start / SUM_BLOCK];
  const double target = u * total;
  double before = 0.0;
  for (int64_t start = 0; start < count; start += SUM_BLOCK) {
    const double sum = sums[start / SUM_BLOCK];
    if (before + sum > target) {
      double running = before;
      for (int64_t i = start; i < std::min(start + SUM_BLOCK, count); ++i) {
        running += w[i];
        if (running > target && w[i] > 0) return i;
      }
    }
    before += sum;
  }
  for (int64_t i = count - 1; i > 0; --i)
    if (w[i] > 0) return i;
  return 0;
}

void sum_blocks(const float* w, int64_t count, double* sums) {
  for (int64_t start = 0; start < count; start += SUM_BLOCK) {
    double sum = 0.0;
    for (int64_t i = start; i < std::min(start + SUM_BLOCK, count); ++i) sum += w[i];
    sums[start / SUM_BLOCK] = sum;
  }
}

// The k-th largest of z. The k-th largest of the maxima of 16 entries each bounds it from below, so few are left.
float kth_largest(const float* z, int64_t count, int64_t k, std::vector<float>& some) {
  constexpr int64_t GROUP = 16;
  float bound = -__builtin_inff();
  some.clear();
  if (count / GROUP >= k) {
    for (int64_t start = 0; start + GROUP <= count; start += GROUP) {
      float best = z[start];
      for (int64_t i = 1; i < GROUP; ++i) best = z[start + i] > best ? z[start + i] : best;
      some.push_back(best);
    }
    std::nth_element(some.begin(), some.begin() + (k - 1), some.end(), std::greater<float>());
    bound = some[(size_t)(k - 1)];
    some.clear();
  }
  for (int64_t i = 0; i < count; ++i)
    if (z[i] >= bound) some.push_back(z[i]);
  std::nth_element(some.begin(), some.begin() + (k - 1), some.end(), std::greater<float>());
  return some[(size_t)(k - 1)];
}

// Floats in their order as whole numbers.
int64_t rank_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits < 0 ? (int64_t)INT32_MIN - bits : bits;
}
float of_rank(int64_t rank) {
  const int32_t bits = (int32_t)(rank < 0 ? (int64_t)INT32_MIN - rank : rank);
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// The least number b such that the mass strictly above b is below the limit: P is {z >= b}. Bisection over floats, for
// that mass falls as b rises.
float nucleus_bound(const Kernels& kernels, const Candidates& c, double limit, float largest) {
  int64_t low = rank_of(-__builtin_inff()) - 1, high = rank_of(largest);
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (kernels.sum_above(c.z, c.w, c.count, of_rank(middle)) < limit ? high : low) = middle;
  }
  return of_rank(high);
}

// Locally typical entries among those with w > 0; the others' weights become 0. As transformers' TypicalLogitsWarper.
void keep_typical(const float* z, float* w, int64_t count, double typical_p) {
  double entropy = 0.0;
  std::vector<int64_t> order;
  for (int64_t i = 0; i < count; ++i)
    if (w[i] > 0) order.push_back(i);
  if (order.empty()) return;
  float top = z[order[0]];
  for (int64_t i : order) top = std::max(top, z[i]);
  double mass = 0.0;
  for (int64_t i : order) mass += std::exp((double)z[i] - top);
  std::vector<float> distance((size_t)count), p((size_t)count);
  for (int64_t i : order) {
    const double logp = (double)z[i] - top - std::log(mass);
    p[(size_t)i] = (float)std::exp(logp);
    distance[(size_t)i] = (float)-logp;
    entropy -= std::exp(logp) * logp;
  }
  for (int64_t i : order) distance[(size_t)i] = std::fabs(distance[(size_t)i] - (float)entropy);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return distance[(size_t)a] < distance[(size_t)b]; });
  float running = 0.0f;
  size_t last = 0;
  for (; last + 1 < order.size(); ++last) {
    running += p[(size_t)order[last]];
    if (!(running < (float)typical_p)) break;
  }
  const float bound = distance[(size_t)order[last]];
  for (int64_t i : order)
    if (distance[(size_t)i] > bound) w[i] = 0.0f;
}

// Steps 5 and 6 on candidates that are already cut to K and B. scratch.w_b and .sums may be overwritten.
int64_t draw_from(const Kernels& kernels, const Slot& slot, const Candidates& c, float largest, DrawScratch& scratch) {
  const SamplingParams& p = slot.params;
  const bool typical = p.typical_p < 1.0, nucleus = p.top_p < 1.0;
  const double limit = p.top_p * c.total_k;
  if (!typical && !nucleus) return invert(c.w_b, c.count, c.sums, uniform(slot, 0));
  for (int d = 0; !typical && d < NUM_DRAWS; ++d) {
    const int64_t entry = invert(c.w_b, c.count, c.sums, uniform(slot, d));
    if (kernels.sum_above(c.z, c.w, c.count, c.z[entry]) < limit) return entry;
  }
  float* kept = scratch.w_b.data();
  const float bound = nucleus ? nucleus_bound(kernels, c, limit, largest) : -__builtin_inff();
  for (int64_t i = 0; i < c.count; ++i) kept[i] = c.z[i] >= bound ? c.w_b[i] : 0.0f;
  if (typical) keep_typical(c.z, kept, c.count, p.typical_p);
  sum_blocks(kept, c.count, scratch.sums.data());
  return invert(kept, c.count, scratch.sums.data(), uniform(slot, typical ? 0 : NUM_DRAWS));
}

// Cut to K and B, then draw. z: processed logits over temperature; scratch.w and .sums hold row_stats of it.
int32_t choose(const Kernels& kernels, const Slot& slot, const float* z, int64_t vocab_size, const RowStats& stats,
               DrawScratch& scratch) {
  const SamplingParams& p = slot.params;
  Candidates c = {z, scratch.w.data(), scratch.w.data(), nullptr, vocab_size, scratch.sums.data(), stats.sum};
  if (p.top_k > 0 && p.top_k < vocab_size) {
    const float least = kth_largest(z, vocab_size, p.top_k, scratch.best);
    scratch.ids.clear();
    for (int64_t i = 0; i < vocab_size; ++i)
      if (z[i] >= least) scratch.ids.push_back((int32_t)i);
    // Entry j comes from an id of at least j, so w can be closed up in place, and z beside it where w_b lies.
    float* close_z = scratch.z.data();
    for (size_t j = 0; j < scratch.ids.size(); ++j) {
      const float value = z[scratch.ids[j]];
      scratch.w[(int64_t)j] = scratch.w[scratch.ids[j]];
      close_z[j] = value;
    }
    c.z = close_z;
    c.ids = scratch.ids.data();
    c.count = (int64_t)scratch.ids.size();
    sum_blocks(c.w, c.count, scratch.sums.data());
    c.total_k = 0.0;
    for (int64_t start = 0; start < c.count; start += SUM_BLOCK) c.total_k += c.sums[start / SUM_BLOCK];
  }
  if (p.min_p > 0) {
    for (int64_t i = 0; i < c.count; ++i) scratch.w_b[i] = c.w[i] >= p.min_p ? c.w[i] : 0.0f;
    c.w_b = scratch.w_b.data();
    sum_blocks(c.w_b, c.count, scratch.sums.data());
  }
  const int64_t entry = draw_from(kernels, slot, c, stats.max, scratch);
  return c.ids == nullptr ? (int32_t)entry : c.ids[entry];
}

void likeliest(const float* z, int64_t count, int64_t wanted, double log_total, std::vector<int32_t>& ids,
               int32_t* top_ids, float* top_logprobs) {
  ids.resize((size_t)count);
  for (int64_t i = 0; i < count; ++i) ids[(size_t)i] = (int32_t)i;
  const int64_t n = std::min(wanted, count);
  std::partial_sort(ids.begin(), ids.begin() + n, ids.end(),
                    [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; });
  for (int64_t i = 0; i < n; ++i) {
    top_ids[i] = ids[(size_t)i];
    top_logprobs[i] = (float)((double)z[ids[(size_t)i]] - log_total);
  }
}

}  // namespace

void Sampler::prepare(DrawScratch& scratch) const {
  scratch.z.make(vocab_size_);
  scratch.w.make(vocab_size_);
  scratch.w_b.make(vocab_size_);
  scratch.sums.make(vocab_size_ / SUM_BLOCK + 1);
}

Drawn Sampler::draw(int64_t index, const float* logits, DrawScratch& scratch, int32_t* top_ids, float* top_logprobs) {
  Slot& slot = slots_[(size_t)index];
  const SamplingParams& p = slot.params;
  const RowStats raw = kernels_.row_stats(logits, vocab_size_, scratch.w.data(), scratch.sums.data());
  if (!(raw.sum >= 1.0)) throw std::domain_error("the model's logits are not all numbers: its weights are broken");
  const double log_total = (double)raw.max + std::log(raw.sum);
  if (p.num_logprobs > 0)
    likeliest(logits, vocab_size_, p.num_logprobs, log_total, scratch.ids, top_ids, top_logprobs);
  const bool penalised = !slot.bias.empty() || !slot.seen.empty() || p.ngram_size > 0 || !slot.counted.empty();
  const float* z = logits;
  RowStats stats = raw;
  const bool greedy = p.temperature == 0.0f;
  if (penalised || (!greedy && p.temperature != 1.0f)) {
    float* own = scratch.z.data();
    memcpy(own, logits, (size_t)vocab_size_ * sizeof(float));
    process(slot, own);
    if (!greedy && p.temperature != 1.0f) kernels_.divide(own, vocab_size_, p.temperature);
    stats = kernels_.row_stats(own, vocab_size_, scratch.w.data(), scratch.sums.data());
    z = own;
  }
  Drawn drawn;
  drawn.token = greedy ? (int32_t)first_equal(z, vocab_size_, stats.max)
                       : choose(kernels_, slot, z, vocab_size_, stats, scratch);
  drawn.logprob = (float)((double)logits[drawn.token] - log_total);
  drawn.entropy = (float)(std::log(raw.sum) - raw.weighted / raw.sum);
  ++slot.num_generated;
  if (!slot.is_seen.empty()) slot.see(drawn.token);
  if (!slot.counts.empty()) slot.count(drawn.token);
  if (p.ngram_size > 0) slot.ngrams.append(drawn.token);
  return drawn;
}

}  // namespace native
