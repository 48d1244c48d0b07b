// Chooses the next token from a row of logits. The result depends on nothing but the row and its stream.
#pragma once

#include <cstdint>
#include <vector>

namespace llmos {

// What a stream asks of its next draw, and what it gets; `Parameters` of stream.py has the same layout.
struct Parameters {
  const int64_t* seen;  // ids that penalties are for, each once
  const float* counts;  // how often each was put out
  int64_t seen_count;
  int64_t vocab;                    // the row's first so many logits are those of tokens
  uint64_t seed, choice, position;  // what its random number is made of
  double scale;                     // 1 / temperature, 0: greedy
  double top_p, min_p;
  int64_t top_k;
  int64_t logprobs;  // of how many likeliest tokens beside the drawn one, -1: none at all
  float repetition, frequency, presence;
  int32_t penalised;
  // Results, where logprobs are asked for.
  double logprob;        // of the drawn token
  int64_t top_count;     // at most `logprobs`
  int64_t* top_ids;      // room for `logprobs`
  double* top_logprobs;  // likewise
};

// Kept from call to call, so that a step allocates nothing once its like has been seen.
struct Memory {
  std::vector<float> raw_maxima, maxima, heads, saved;
  std::vector<double> ends, weights;
  std::vector<uint64_t> keys, spare;
};

constexpr int64_t kNoToken = -1;

// Draws from one of the rows [R, length] of logits, which is changed meanwhile, and back: the token, or kNoToken where it
// holds NaN or its largest logit is not finite. Throws bad_alloc.
//
// `streams` has an entry for each row. One that wants neither penalties nor logprobs may fill several rows in a row: then
// they are for its next token, the one after that, and so on.
int64_t draw(float* row, int64_t length, Parameters* const* streams, int64_t index, Memory& memory);

}  // namespace llmos
