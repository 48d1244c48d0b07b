// Attention of many query rows over one KV head's pages, on AMX's bfloat16 tiles.
//
// Queries and weights are rounded to 8 bits of mantissa, and so are keys and values of float16; int8 codes are exact, and
// their scales multiply scores and weights in float32. Sums are float32. These are other bits than those of attention.h,
// but here too a row's depend on its own keys only.
//
// Keys pass in tiles of kKeyTile, unpacked once for all rows of a task; rows pass in blocks of kRoundedBlock, all in
// the first-level cache. While one block's scores become weights, the tiles compute the next one's scores and the one
// before's sums. The softmax is online, to base 2, and relative to a reference per row: the maximum among the first
// tile's keys, until weights exceed kLimit.
#pragma once

#include "attention.h"
#include "tile_pairs.h"

namespace llmos {
namespace LLMOS_ISA {

constexpr int kKeyBlocks = kKeyTile / kBlock;
constexpr float kLimit = 4294967296.0f;
constexpr float kLog2E = 1.44269504088896341f;

// What is too small for a normal float becomes zero, as it does in the tiles, and takes no longer than other results.
class SubnormalsAreZero {
 public:
  SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kResults | kOperands); }
  ~SubnormalsAreZero() { _mm_setcsr(before_); }
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

 private:
  static constexpr unsigned kResults = 0x8000, kOperands = 0x40;  // Intel SDM vol. 1, 10.2.3
  const unsigned before_;
};

// 2^x within 7.5e-5 of itself: the cubic polynomial in x's fraction that is best in relative terms.
inline F power_of_two(F x) {
  const F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  F p = fma(broadcast(0.07802452f), f, broadcast(0.22606716f));
  p = fma(p, f, broadcast(0.69583354f));
  p = fma(p, f, broadcast(0.99992522f));
  return _mm512_scalef_ps(p, x);
}

// Lane r of the result is row r reduced.
template <class Reduce>
inline F across(const F (&rows)[kSide], Reduce reduce) {
  F two[8], four[4], eight[2];
  for (int i = 0; i < 8; ++i)
    two[i] = reduce(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
    four[i] = reduce(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto quarters = [&](F a, F b) {
    constexpr int kEven = 0x88, kOdd = 0xdd;
    return reduce(_mm512_shuffle_f32x4(a, b, kEven), _mm512_shuffle_f32x4(a, b, kOdd));
  };
  for (int i = 0; i < 2; ++i) eight[i] = quarters(four[2 * i], four[2 * i + 1]);
  return quarters(eight[0], eight[1]);
}

inline __m512i cache_pairs(const Half* low, const Half* high) { return pairs(load(low), load(high)); }
inline __m512i cache_pairs(const int8_t* low, const int8_t* high) {
  const __m512i below = _mm512_srli_epi32(_mm512_castps_si512(load(low)), 16);
  return _mm512_or_si512(below, _mm512_castps_si512(load(high)));
}

// Scratch of one worker, carved from one allocation whose parts are whole cache lines.
struct RoundedWorkspace {
  uint32_t *queries, *weights;        // tiles [rows / 16, head size / 32], [2, 2, kKeyBlocks]
  PairTile (*keys)[2], (*values)[2];  // [kKeyBlocks, head size / 32], of 32 keys; [head size / 32, kKeyBlocks]
  float *scores, *sums;               // [2, kRoundedBlock, kKeyTile], [rows, head size]
  float *shifts, *totals;             // [rows], the references negated; [rows, kLanes]
  float *key_scales, *value_scales;   // [kKeyTile]

  RoundedWorkspace(float* base, int head_size) {
    const auto take = [&](int64_t words) {
      float* const at = base;
      base += words;
      return at;
    };
    scores = take(2 * kRoundedBlock * kKeyTile);
    weights = reinterpret_cast<uint32_t*>(take(kRoundedBlock * kKeyTile));
    keys = reinterpret_cast<PairTile(*)[2]>(take(kKeyTile * head_size / 2));
    values = reinterpret_cast<PairTile(*)[2]>(take(kKeyTile * head_size / 2));
    key_scales = take(kKeyTile);
    value_scales = take(kKeyTile);
    shifts = take(kMaxRoundedRows);
    totals = take(kMaxRoundedRows * kLanes);
    queries = reinterpret_cast<uint32_t*>(take(kMaxRoundedRows * head_size / 2));
    sums = take(kMaxRoundedRows * head_size);
  }
};

template <class T>
class RoundedAttention {
 public:
  RoundedAttention(const AttentionCall& call, const AttentionTask& task, float* scratch)
      : call_(call),
        task_(task),
        work_(scratch, call.head_size),
        size_(call.head_size),
        blocks_(call.head_size / kBlock),
        group_(call.group()),
        rows_(task.count * group_),
        length_(task.position + task.count) {}

  void run() {
    if (task_.store) {
      const int head = task_.kv_head;
      store_tokens<T>(call_, task_.pages, task_.token, task_.position, task_.count, head, head + 1);
    }
    const SubnormalsAreZero fast;
    const Tiles tiles(kPairShapes);
    round_queries();
    for (int64_t begin = 0; begin < length_; begin += kKeyTile) attend(begin);
    for (int r = 0; r < rows_; ++r) write(r);
  }

 private:
  static constexpr bool kScaled = sizeof(T) == 1;

  // Keys that a row sees: those before this position.
  int64_t visible(int row) const { return task_.position + row / group_ + 1; }
  int64_t last_visible(int block) const { return visible(smaller(block + kRoundedBlock, rows_) - 1); }

  const T* page_at(void* pool, int64_t position) const {
    return page_of<const T>(pool, task_.pages[position / call_.page_tokens], task_.kv_head, call_);
  }

  void round_queries() {
    const int half = size_ / 2;
    float query[kMaxHeadSize];
    for (int r = 0; r < rows_; ++r) {
      const int64_t position = task_.position + r / group_;
      const float* const x = call_.qkv + (task_.token + r / group_) * (call_.heads + 2 * call_.kv_heads) * size_ +
                             (task_.kv_head * group_ + r % group_) * size_;
      rotate(x, call_.cosines + position * half, call_.sines + position * half, half, call_.scale * kLog2E, query);
      round_row(query, size_, r, work_.queries, pairs);
    }
    for (int d = 0; d < size_; ++d) query[d] = 0;
    for (int r = rows_; r % kRoundedBlock; ++r) round_row(query, size_, r, work_.queries, pairs);
  }

  // 32 keys to a tile pair: element i and i + 16 of a block side by side, as in a row of queries.
  void unpack_keys(int64_t begin) {
    const int tokens = call_.page_tokens;
    for (int at = 0; at < kKeyTile && begin + at < length_; at += kSide) {
      const int64_t slot = (begin + at) % tokens;
      const T* const page = page_at(call_.keys, begin + at);
      for (int b = 0; b < blocks_; ++b) {
        PairTile& to = work_.keys[at / kBlock * blocks_ + b][at / kSide % 2];
        const T* const block = page + b * kBlock * tokens + slot;
        for (int i = 0; i < kSide; ++i)
          _mm512_store_si512(to[i], cache_pairs(block + i * tokens, block + (i + kSide) * tokens));
      }
      if constexpr (kScaled) store(work_.key_scales + at, load(scales_of(page) + slot));
    }
  }

  // 32 elements to a tile pair: tokens i and i + 16 of a block side by side. What is beyond the last token is zero.
  void unpack_values(int64_t begin) {
    static constexpr T kNothing[kMaxHeadSize] = {};
    for (int at = 0; at < kKeyTile && begin + at < length_; at += kBlock) {
      const T* tokens[kBlock];
      for (int half = 0; half < kBlock; half += kSide) {
        const int64_t first = begin + at + half, known = length_ - first;
        const T* const page = known > 0 ? page_at(call_.values, first) : nullptr;
        for (int i = 0; i < kSide; ++i)
          tokens[half + i] = i < known ? page + (first % call_.page_tokens + i) * size_ : kNothing;
        if constexpr (kScaled) {
          const __mmask16 mask = known >= kSide ? 0xffff : known > 0 ? (1 << known) - 1 : 0;
          const float* const scales = known > 0 ? scales_of(page) + first % call_.page_tokens : nullptr;
          store(work_.value_scales + at + half, mask ? _mm512_maskz_loadu_ps(mask, scales) : zero());
        }
      }
      for (int d = 0; d < size_; d += kSide) {
        PairTile& to = work_.values[d / kBlock * kKeyBlocks + at / kBlock][d / kSide % 2];
        for (int i = 0; i < kSide; ++i) _mm512_store_si512(to[i], cache_pairs(tokens[i] + d, tokens[i + kSide] + d));
      }
    }
  }

  const float* scales_of(const T* page) const {
    return reinterpret_cast<const float*>(page + size_ * call_.page_tokens);
  }

  // All rows over the keys of a tile.
  void attend(int64_t begin) {
    int row = 0;
    while (last_visible(row) <= begin) row += kRoundedBlock;
    unpack_keys(begin);
    for (int b = 0; b < key_blocks(begin, row); ++b) score(begin, row, b);
    unpack_values(begin);
    for (int before = 0; row < rows_; row += kRoundedBlock, before = key_blocks(begin, row - kRoundedBlock)) {
      Beside beside{*this, begin, row, before};
      if (begin == 0) refer(row);
      weigh(begin, row, beside);
      beside.finish();
    }
    for (int b = 0; b < blocks_; ++b) add_up(begin, row - kRoundedBlock, b);
  }

  // Products of tiles that wait for nothing weighed now: scores of the next block, and sums of the one before if it has
  // weights, `before` blocks of keys.
  struct Beside {
    RoundedAttention& all;
    const int64_t begin;
    const int row, before;
    int scored = 0, added = 0;

    bool next() {
      if (row + kRoundedBlock < all.rows_ && scored < all.key_blocks(begin, row + kRoundedBlock))
        return all.score(begin, row + kRoundedBlock, scored++), true;
      if (before && added < all.blocks_) return all.add_up(begin, row - kRoundedBlock, added++), true;
      return false;
    }
    void finish() {
      while (next()) {
      }
    }
  };

  // Of a tile, those that any row of a block sees.
  int key_blocks(int64_t begin, int row) const {
    return int(smaller<int64_t>(kKeyTile, last_visible(row) - begin) + kBlock - 1) / kBlock;
  }

  float* scores_of(int row) const {
    return work_.scores + (row / kRoundedBlock % 2 * kRoundedBlock + row % kRoundedBlock) * kKeyTile;
  }
  uint32_t* weights_of(int row) const {
    return work_.weights + row / kRoundedBlock % 2 * kRoundedBlock * kKeyTile / 2 +
           (row / kSide % 2 * kKeyBlocks * kSide + row % kSide) * kSide;
  }

  void score(int64_t, int row, int block) {
    multiply_pairs<2, 2, false>(work_.queries + row * size_ / 2, blocks_, work_.keys + block * blocks_, blocks_,
                                scores_of(row) + block * kBlock, kKeyTile);
  }

  void add_up(int64_t begin, int row, int block) {
    const int count = key_blocks(begin, row);
    float* const sums = work_.sums + row * size_ + block * kBlock;
    const PairTile(*const values)[2] = work_.values + block * kKeyBlocks;
    begin ? multiply_pairs<2, 2, true>(weights_of(row), kKeyBlocks, values, count, sums, size_)
          : multiply_pairs<2, 2, false>(weights_of(row), kKeyBlocks, values, count, sums, size_);
  }

  static __mmask16 first_lanes(int64_t n) { return n >= kLanes ? 0xffff : n > 0 ? (1 << n) - 1 : 0; }

  // Rounded before anything is taken from it: the largest of all, however large, is its own reference exactly.
  F scaled(const float* scores, int at) const {
    if constexpr (kScaled) return mul(load(scores + at), load(work_.key_scales + at));
    return load(scores + at);
  }

  // The largest score of a row, lane by lane.
  F peak(int64_t begin, int row, int blocks) const {
    F top = broadcast(-1e30f);
    for (int at = 0; at < blocks * kBlock; at += kLanes)
      top = _mm512_mask_max_ps(top, first_lanes(visible(row) - begin - at), top, scaled(scores_of(row), at));
    return top;
  }

  void refer(int block) {
    for (int row = block; row < block + kRoundedBlock; row += kSide) {
      F tops[kSide];
      for (int r = 0; r < kSide; ++r) tops[r] = peak(0, row + r, key_blocks(0, block));
      store(work_.shifts + row, sub(zero(), across(tops, [](F a, F b) { return maximum(a, b); })));
    }
  }

  // Turns the scores of a block of rows into weights.
  void weigh(int64_t begin, int row, Beside& beside) {
    constexpr int kPace = 8;  // rows
    const int blocks = key_blocks(begin, row);
    const bool masked = visible(row) - begin < blocks * kBlock;
    for (int r = row; r < smaller(row + kRoundedBlock, rows_); ++r) {
      if (r % kPace == 0) beside.next();
      F total = masked ? weigh<true>(begin, r, blocks) : weigh<false>(begin, r, blocks);
      if (_mm512_cmp_ps_mask(total, broadcast(kLimit), _CMP_GT_OQ)) {
        raise(begin, r, blocks);
        total = weigh<true>(begin, r, blocks);
      }
      float* const totals = work_.totals + r * kLanes;
      store(totals, begin ? add(load(totals), total) : total);
    }
  }

  template <bool kMasked>
  F weigh(int64_t begin, int row, int blocks) {
    const float* const scores = scores_of(row);
    uint32_t* const weights = weights_of(row);
    const F shift = broadcast(work_.shifts[row]);
    F total = zero();
    for (int b = 0; b < blocks; ++b) {
      const int at = b * kBlock;
      F low = power_of_two(add(scaled(scores, at), shift)), high = power_of_two(add(scaled(scores, at + kSide), shift));
      if constexpr (kMasked) {
        low = _mm512_maskz_mov_ps(first_lanes(visible(row) - begin - at), low);
        high = _mm512_maskz_mov_ps(first_lanes(visible(row) - begin - at - kSide), high);
      }
      total = add(total, add(low, high));
      if constexpr (kScaled) {
        low = mul(low, load(work_.value_scales + at));
        high = mul(high, load(work_.value_scales + at + kSide));
      }
      _mm512_store_si512(weights + b * kTileElements, pairs(low, high));
    }
    return total;
  }

  // Brings a row's sums so far to a new reference.
  void raise(int64_t begin, int row, int blocks) {
    const float shift = -largest(peak(begin, row, blocks));
    float lanes[kLanes];
    store(lanes, power_of_two(broadcast(shift - work_.shifts[row])));
    const F factor = broadcast(lanes[0]);
    work_.shifts[row] = shift;
    float* const totals = work_.totals + row * kLanes;
    float* const sums = work_.sums + row * size_;
    if (begin == 0) return;
    store(totals, mul(load(totals), factor));
    for (int d = 0; d < size_; d += kLanes) store(sums + d, mul(load(sums + d), factor));
  }

  void write(int row) const {
    const int64_t token = task_.token + row / group_;
    float* const out = call_.out + (token * call_.heads + task_.kv_head * group_ + row % group_) * size_;
    const F scale = broadcast(1.0f / sum(load(work_.totals + row * kLanes)));
    for (int d = 0; d < size_; d += kLanes) store(out + d, mul(load(work_.sums + row * size_ + d), scale));
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const RoundedWorkspace work_;
  const int size_, blocks_, group_, rows_;
  const int64_t length_;
};

inline void attend_rounded(const AttentionCall& call, const AttentionTask& task, float* scratch) {
  if (call.cache == Cache::kInt8) RoundedAttention<int8_t>(call, task, scratch).run();
  else RoundedAttention<Half>(call, task, scratch).run();
}

}  // namespace LLMOS_ISA
}  // namespace llmos
