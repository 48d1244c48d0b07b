// Penalties, temperature, then the cuts (top-k, min-p, top-p), each on what the one before it left, renormalised;
// logprobs are of the raw row. Weights are relative to the likeliest token's, which is 1. The same in numpy: sampling.py
// and distribution.py.
#include "draw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "kernels/kernels.h"

namespace llmos {
namespace {

struct Row {
  const float* logits;
  int64_t length;
  const float* maxima;  // by block
  float largest;        // NaN if a logit is
  int64_t blocks() const { return (length + kRowBlock - 1) / kRowBlock; }
};

struct Distribution {
  Row row;
  double scale;
  const double* ends;  // running sum of the blocks' weights
  double total;
  double exponent(int64_t id) const { return (double(row.logits[id]) - row.largest) * scale; }
  double weight(int64_t id) const { return std::exp(exponent(id)); }
  double logprob(int64_t id) const { return exponent(id) - std::log(total); }
};

Row survey(const float* logits, int64_t length, std::vector<float>& maxima) {
  Row row{logits, length, nullptr, 0};
  maxima.resize(row.blocks());
  row.maxima = maxima.data();
  row.largest = kernels().survey(logits, length, maxima.data());
  return row;
}

Distribution weigh(const Row& row, double scale, std::vector<double>& ends) {
  ends.resize(row.blocks());
  kernels().weigh(row.logits, row.length, row.largest, float(scale), ends.data());
  for (size_t i = 1; i < ends.size(); ++i) ends[i] += ends[i - 1];
  return {row, scale, ends.data(), ends.back()};
}

// ---- random numbers

// SplitMix64's output function over the three counters, in [0, 1): see `uniform` in stream.py.
double uniform(const Parameters& p) {
  uint64_t state = 0;
  for (uint64_t counter : {p.seed, p.choice, p.position}) {
    state += counter + 0x9E3779B97F4A7C15u;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
    state ^= state >> 31;
  }
  return double(state >> 11) * 0x1p-53;
}

// The weight with which the running sum passes `target`; never one of zero, whatever the rounding.
int64_t quantile(double* weights, int64_t count, double target) {
  for (int64_t i = 1; i < count; ++i) weights[i] += weights[i - 1];
  const int64_t passing = std::upper_bound(weights, weights + count, target) - weights;
  return std::min<int64_t>(passing, std::lower_bound(weights, weights + count, weights[count - 1]) - weights);
}

// The token that the share `u` < 1 of the total falls on, tokens being ordered by id.
int64_t quantile(const Distribution& d, double u) {
  const double target = u * d.total;
  const int64_t last = d.row.blocks() - 1;
  const int64_t block = std::min<int64_t>(std::upper_bound(d.ends, d.ends + last + 1, target) - d.ends, last);
  const int64_t first = block * kRowBlock, count = std::min<int64_t>(kRowBlock, d.row.length - first);
  double weights[kRowBlock];
  for (int64_t i = 0; i < count; ++i) weights[i] = d.weight(first + i);
  return first + quantile(weights, count, target - (block ? d.ends[block - 1] : 0.0));
}

// ---- the likeliest tokens

// Rises as the value falls, and with the id where values are equal.
uint64_t key(float value, int64_t id) {
  value += 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~rising) << 32 | uint64_t(id);
}

int64_t id_of(uint64_t key) { return int64_t(key & UINT32_MAX); }

// By radix where there are many: three stable passes over the value's 32 bits; the ids rise already.
void sort(std::vector<uint64_t>& keys, std::vector<uint64_t>& spare) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  if (keys.size() < kBuckets) return std::sort(keys.begin(), keys.end());
  spare.resize(keys.size());
  for (int shift = 32; shift < 64; shift += kBits) {
    size_t places[kBuckets + 1] = {};
    for (uint64_t k : keys) ++places[(k >> shift) % kBuckets + 1];
    for (int b = 0; b < kBuckets; ++b) places[b + 1] += places[b];
    for (uint64_t k : keys) spare[places[(k >> shift) % kBuckets]++] = k;
    keys.swap(spare);
  }
}

// Keys of the logits that reach `least`, falling, ties by id.
void above(const Row& row, float least, Memory& memory) {
  memory.keys.clear();
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (row.maxima[block] < least) continue;
    const int64_t end = std::min(row.length, (block + 1) * kRowBlock);
    for (int64_t i = block * kRowBlock; i < end; ++i)
      if (row.logits[i] >= least) memory.keys.push_back(key(row.logits[i], i));
  }
  sort(memory.keys, memory.spare);
}

// Keys of the `count` likeliest tokens (all, if there are fewer), likeliest first, ties by id.
//
// While `count` is small, so many blocks have a maximum that reaches the count-th largest maximum: a limit that is found
// among few numbers and lies close to the count-th largest logit.
void likeliest(const Row& row, int64_t count, Memory& memory) {
  const bool few = count <= row.blocks();
  const float* from = few ? row.maxima : row.logits;
  const int64_t heads = few ? row.blocks() : row.length;
  memory.heads.assign(from, from + heads);
  const auto place = memory.heads.begin() + (std::min(std::max<int64_t>(count, 1), heads) - 1);
  std::nth_element(memory.heads.begin(), place, memory.heads.end(), std::greater<float>());
  above(row, *place, memory);
  if (int64_t(memory.keys.size()) > count) memory.keys.resize(count);
}

// ---- cuts

constexpr int64_t kCandidates[] = {64, 512};  // likeliest tokens to try a cut on before all that it may keep
constexpr int64_t kTooFew = -1;

bool is_cut(const Parameters& p) { return p.top_p < 1.0 || p.top_k > 0 || p.min_p > 0.0; }

// Weights of the tokens in `keys`.
void weights_of(const Distribution& d, Memory& memory) {
  memory.weights.clear();
  for (uint64_t k : memory.keys) memory.weights.push_back(d.weight(id_of(k)));
}

// How many of the falling weights min-p and top-p leave; `whole`: no token that is not among them can be left.
int64_t kept(const std::vector<double>& weights, const Distribution& d, const Parameters& p, bool whole) {
  int64_t count = int64_t(weights.size());
  if (p.min_p > 0.0) {
    const int64_t all = count;
    while (count > 0 && weights[count - 1] < p.min_p) --count;
    if (count == all && !whole) return kTooFew;
    whole = true;
  }
  if (p.top_p >= 1.0) return whole ? count : kTooFew;
  double sum = 0.0, total = d.total;
  if (whole) total = std::accumulate(weights.begin(), weights.begin() + count, 0.0);
  const double needed = p.top_p * total;
  for (int64_t i = 0; i < count; ++i)
    if ((sum += weights[i]) >= needed) return i + 1;
  return kTooFew;
}

// No logit below this one is kept: min-p says so, or all such tokens together fit into what top-p drops.
double least_kept(const Distribution& d, const Parameters& p) {
  const double least = p.min_p > 0.0 ? p.min_p : (1.0 - p.top_p) * d.total / double(d.row.length);
  return least > 0.0 ? d.row.largest + std::log(0.5 * least) / d.scale : -INFINITY;  // half: room for rounding
}

// Leaves in `memory` the keys of the tokens that the cuts keep, likeliest first, and at least their weights.
void cut(const Distribution& d, const Parameters& p, Memory& memory) {
  int64_t count = kTooFew;
  const auto attempt = [&](bool sure) {
    weights_of(d, memory);
    count = kept(memory.weights, d, p, sure || int64_t(memory.keys.size()) == d.row.length);
  };
  if (p.top_k > 0) {
    likeliest(d.row, p.top_k, memory);
    attempt(true);
  } else {
    for (int64_t candidates : kCandidates) {
      likeliest(d.row, candidates, memory);
      attempt(false);
      if (count != kTooFew) break;
    }
  }
  if (count == kTooFew) {
    above(d.row, float(least_kept(d, p)), memory);
    attempt(p.min_p > 0.0);
  }
  if (count != kTooFew) memory.keys.resize(count);
}

// ---- a draw

// Holds a row's penalties while it lives: they are put into the row and taken out again.
class Penalties {
 public:
  Penalties(float* logits, int64_t length, const Parameters& p, std::vector<float>& saved)
      : logits_(logits), length_(length), p_(p), saved_(saved) {
    saved_.resize(p.seen_count);
    for (int64_t i = 0; i < p.seen_count; ++i)
      if (float* logit = find(i)) saved_[i] = *logit, *logit = penalised(*logit, p.counts[i]);
  }
  ~Penalties() {
    for (int64_t i = 0; i < p_.seen_count; ++i)
      if (float* logit = find(i)) *logit = saved_[i];
  }

 private:
  // Null for an id that the row has no logit of.
  float* find(int64_t i) const { return uint64_t(p_.seen[i]) < uint64_t(length_) ? logits_ + p_.seen[i] : nullptr; }
  float penalised(float logit, float count) const {
    if (p_.repetition != 1.0f) logit = logit > 0 ? logit / p_.repetition : logit * p_.repetition;
    logit -= p_.frequency * count;
    return count > 0 ? logit - p_.presence : logit;
  }

  float* logits_;
  int64_t length_;
  const Parameters& p_;
  std::vector<float>& saved_;
};

int64_t greatest(const Row& row) {
  const int64_t block = std::find(row.maxima, row.maxima + row.blocks(), row.largest) - row.maxima;
  return std::find(row.logits + block * kRowBlock, row.logits + row.length, row.largest) - row.logits;
}

// `known` is the row's distribution where it has been weighed, with whatever scale.
int64_t choose(const Row& row, const Parameters& p, const Distribution* known, Memory& memory) {
  if (!std::isfinite(row.largest)) return kNoToken;
  if (p.scale == 0.0) return greatest(row);
  const Distribution d = known && known->scale == p.scale ? *known : weigh(row, p.scale, memory.ends);
  if (!is_cut(p)) return quantile(d, uniform(p));
  cut(d, p, memory);
  const int64_t count = int64_t(memory.keys.size());
  double* weights = memory.weights.data();
  const double total = std::accumulate(weights, weights + count, 0.0);
  return id_of(memory.keys[quantile(weights, count, uniform(p) * total)]);
}

int64_t choose_penalised(float* logits, int64_t length, const Parameters& p, Memory& memory) {
  const Penalties applied(logits, length, p, memory.saved);
  return choose(survey(logits, length, memory.maxima), p, nullptr, memory);
}

int64_t draw(float* logits, int64_t length, Parameters& p, Memory& memory) {
  length = std::min(length, p.vocab);
  if (p.logprobs < 0 && p.penalised) return choose_penalised(logits, length, p, memory);
  const Row raw = survey(logits, length, memory.raw_maxima);
  if (p.logprobs < 0) return choose(raw, p, nullptr, memory);
  if (!std::isfinite(raw.largest)) return kNoToken;
  const Distribution d = weigh(raw, 1.0, memory.ends);
  likeliest(raw, p.logprobs, memory);
  p.top_count = int64_t(memory.keys.size());
  for (int64_t i = 0; i < p.top_count; ++i) {
    p.top_ids[i] = id_of(memory.keys[i]);
    p.top_logprobs[i] = d.logprob(p.top_ids[i]);
  }
  const int64_t token = p.penalised ? choose_penalised(logits, length, p, memory) : choose(raw, p, &d, memory);
  if (token != kNoToken) p.logprob = d.logprob(token);
  return token;
}

}  // namespace

int64_t draw(float* row, int64_t length, Parameters* const* streams, int64_t index, Memory& memory) {
  int64_t first = index;
  while (first > 0 && streams[first - 1] == streams[index]) --first;
  if (first == index) return draw(row, length, *streams[index], memory);
  Parameters later = *streams[index];
  later.position += uint64_t(index - first);
  return draw(row, length, later, memory);
}

}  // namespace llmos
