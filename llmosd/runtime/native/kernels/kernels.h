// The computing part of the operators: compiled once per instruction set, chosen at run time.
//
// Everything behind this table is free of ONNX Runtime and of the C++ library's templates: a template instantiated in a
// file compiled for AVX2 could otherwise be the copy that the linker keeps for everyone.
#pragma once

#include <cstdint>

namespace llmos {

struct Half {
  uint16_t bits;
};

// What the pages hold. An int8 page is its codes, laid out as the other types are, and then one float32 scale per token.
enum class Cache { kFloat32, kFloat16, kInt8 };

constexpr int kScaleBytes = 4;  // what a token's scale adds to its codes

// One attention call, as all its tasks see it. Offsets are in elements, positions in tokens.
struct AttentionCall {
  int heads, kv_heads, head_size, page_tokens;
  int64_t tokens, table_columns;
  float scale;
  Cache cache;
  const float* qkv;              // [tokens, (heads + 2 kv_heads) * head_size]
  void* keys;                    // [pages, kv_heads, head_size, page_tokens]
  void* values;                  // [pages, kv_heads, page_tokens, head_size]
  const float *cosines, *sines;  // [context, head_size / 2]
  float* queries;                // scratch [kv_heads, tokens, heads / kv_heads, head_size]: what rotate_queries leaves
  float* out;                    // [tokens, heads * head_size]
  int group() const { return heads / kv_heads; }
};

// Queries [first, first + count) of one sequence against one KV head, over key tiles [tile_begin, tile_end).
struct AttentionTask {
  const int32_t* pages;  // this sequence's row of the page table
  int64_t token;         // the first query's row in qkv and out
  int64_t position;      // the first query's position in its sequence
  int count, kv_head, tile_begin, tile_end;
  bool store;       // these are all of the sequence's new tokens: rotate and store them first
  bool rounded;     // for attend_rounded, which merges and rotates its queries itself
  float* partials;  // null: merge and write `out`; else one partial result per tile goes here
};

constexpr int kKeyTile = 128;      // keys whose scores are normalised together; fixes the reduction order
constexpr int kMaxQueryRows = 48;  // query rows (tokens × heads of a group) of one task
constexpr int kMaxHeadSize = 256;
constexpr int kMaxGroup = 48;
constexpr int kStoredTogether = 16;  // int8 keys that are stored at once: alone, their bytes would lie a row apart
constexpr int kMaxRoundedRows = 384;  // query rows of one task of `attend_rounded`
constexpr int kRoundedBlock = 32;     // of which it takes so many at once
// A partial result of one query row: maximum, sum, then head_size accumulated values.
constexpr int partial_size(int head_size) { return head_size + 2; }
// Floats of scratch that one call of `attend` needs: scores, two sets of partial results, one page as float32.
constexpr int64_t attention_scratch(int head_size, int page_tokens) {
  return kMaxQueryRows * (kKeyTile + 2 * partial_size(head_size)) + head_size * page_tokens;
}
// Those that a call of `attend_rounded` needs: see RoundedWorkspace.
constexpr int64_t rounded_attention_scratch(int head_size) {
  return kKeyTile * (3 * kRoundedBlock + head_size + 2) + kMaxRoundedRows * (1 + 16 + head_size * 3 / 2);
}

constexpr int kCacheLine = 64;      // bytes
constexpr int kBlock = 32;          // elements of a row that share a scale, in weights and activations
constexpr int kColumns = 16;        // output columns that are packed together in quantised weights
constexpr int kGated = 16;          // gates, then as many of what they are to multiply, in a gated matrix's columns
constexpr int kPanel = 16;          // output columns that are packed together in float32 weights
constexpr int kRowBlock = 64;       // logits whose maximum and weight are found together
constexpr int kTileRows = 16;       // rows that matrix registers take at once
constexpr int kMaxLinearRows = 48;  // rows of one call of `linear32`: they stay in the second-level cache

// int8 activations: codes [rows, k], and per block of 32 its scale and scale × sum of codes [k / 32, stride], of which
// the first `rows` of each line count.
struct Activations {
  int8_t* codes;
  float *scales, *sums;
  int64_t stride;

  Activations from(int64_t row, int64_t k) const { return {codes + row * k, scales + row, sums + row, stride}; }
};

struct QuantisedWeights {
  const uint8_t* codes;  // per column group and block: 256 bytes (4 bits) or 512 bytes (8 bits)
  const Half* scales;    // per column group and block: 16 scales, and for 4 bits 16 minima
  int64_t columns, k;
};

constexpr int kStripeGroups = 2;  // column groups that make up a stripe of products

// Where products go: stripe by stripe, and row by row in each.
struct Output {
  float* at;
  int64_t row_stride, stripe_stride;

  // Of a row and a column group, counted from the first ones.
  float* of(int64_t row, int64_t group) const {
    return at + row * row_stride + group / kStripeGroups * stripe_stride + group % kStripeGroups * kColumns;
  }
};

struct Kernels {
  const char* name;
  // Keys, rotated, and values of `count` tokens, for KV heads [head_begin, head_end); queries of their groups.
  void (*store_tokens)(const AttentionCall&, const int32_t* pages, int64_t token, int64_t position, int count,
                       int head_begin, int head_end);
  void (*rotate_queries)(const AttentionCall&, int64_t token, int64_t position, int count, int head_begin, int head_end);
  void (*fetch_first_keys)(const AttentionCall&, const AttentionTask&);
  void (*attend)(const AttentionCall&, const AttentionTask&, float* scratch);
  void (*attend_rounded)(const AttentionCall&, const AttentionTask&, float* scratch);  // many rows as bfloat16, or null
  void (*merge)(const AttentionCall&, const AttentionTask&, float* partials, int tiles);
  void (*quantise_row)(const float* x, int64_t k, const Activations&);
  // Products with column groups [begin, end).
  void (*linear4)(const QuantisedWeights&, const Activations&, int64_t rows, int64_t group_begin, int64_t group_end,
                  const Output&);
  void (*linear8)(const QuantisedWeights&, const Activations&, int64_t rows, int64_t group_begin, int64_t group_end,
                  const Output&);
  // Null where they would not be faster: many rows, weights and activations as bfloat16. A tile is kTileRows × kBlock elements.
  void (*round_row)(const float* x, int64_t k, int64_t row, uint32_t* tiles);
  void (*rounded4)(const QuantisedWeights&, const uint32_t* tiles, int64_t rows, int64_t group_begin, int64_t group_end,
                   const Output&);
  void (*rounded8)(const QuantisedWeights&, const uint32_t* tiles, int64_t rows, int64_t group_begin, int64_t group_end,
                   const Output&);
  void (*linear32)(const float* weight, const float* x, int rows, int64_t columns, int64_t k, int64_t panel_begin,
                   int64_t panel_end, float* y);
  void (*swiglu)(const float* gate, const float* up, int64_t count, float* out);
  // y = residual (none if null) + x, or with `gated` + the swiglu of its halves: a stripe [rows, 32] of which the first
  // `columns` count, 32 if gated; residual's rows are as far apart as y's.
  void (*finish)(const float* x, int64_t rows, int columns, bool gated, const float* residual, float* y,
                 int64_t y_stride);
  // out = gain · x / √(mean x² + epsilon); k is a multiple of kBlock.
  void (*normalise_row)(const float* x, const float* gain, float epsilon, int64_t k, float* out);
  float (*survey)(const float* row, int64_t length, float* maxima);
  void (*weigh)(const float* row, int64_t length, float top, float scale, double* sums);
};

const Kernels& kernels();  // the fastest set that this processor can run

}  // namespace llmos
