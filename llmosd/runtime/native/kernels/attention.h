// Attention of a tile of queries over one KV head's pages.
//
// The keys of a sequence are cut into tiles of kKeyTile by absolute position. Each tile gives a partial result
// (maximum, sum, weighted values); partial results are merged in ascending order. A row's bits therefore depend on its
// own keys only: not on the batch, the chunk it was prefilled in, the number of threads, or whether a task took the
// whole sequence or a part. (Tiled online softmax as in FlashAttention-2, split over keys as in Flash-Decoding.)
#pragma once

#include "gemm.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace llmos {
namespace LLMOS_ISA {

// Rotates one head (half-split layout: element i pairs with i + head_size / 2) and scales it.
inline void rotate(const float* x, const float* cosines, const float* sines, int half, float scale, float* out) {
  const F s = broadcast(scale);
  for (int at = 0; at < half; at += kLanes) {
    const int i = smaller(at, half - kLanes);  // a last vector may compute some elements again
    const F a = load(x + i), b = load(x + half + i), c = load(cosines + i), d = load(sines + i);
    const F minus_b = sub(zero(), b);
    store(out + i, mul(fma(minus_b, d, mul(a, c)), s));
    store(out + half + i, mul(fma(a, d, mul(b, c)), s));
  }
}

// Elements of one page and KV head.
template <class T>
inline int64_t page_elements(const AttentionCall& call) {
  return int64_t(call.head_size + (sizeof(T) == 1 ? kScaleBytes : 0)) * call.page_tokens;
}

template <class T>
inline T* page_of(void* pool, int32_t page, int kv_head, const AttentionCall& call) {
  return static_cast<T*>(pool) + (int64_t(page) * call.kv_heads + kv_head) * page_elements<T>(call);
}

// Codes of one head's key or value; returns their scale, which is NaN if an element is not finite. What is smaller than
// any key that matters becomes zero.
inline float quantise_head(const float* x, int size, int8_t* codes) {
  F top = zero(), defect = zero();
  for (int d = 0; d < size; d += kLanes) {
    top = maximum(top, absolute(load(x + d)));
    defect = fma(load(x + d), zero(), defect);
  }
  const float peak = largest(top) + sum(defect);
  const F inverse = broadcast(peak > 1e-30f ? 127.0f / peak : 0.0f);
  for (int d = 0; d < size; d += kLanes) store(codes + d, mul(load(x + d), inverse));
  return peak / 127.0f;
}

inline void store_scale(int8_t* page, int64_t slot, float scale, const AttentionCall& call) {
  std::memcpy(page + int64_t(call.head_size) * call.page_tokens + slot * kScaleBytes, &scale, kScaleBytes);
}

// Writes one token's key (`transposed`) or value into a page of its KV head.
template <class T>
inline void store_head(const float* x, T* page, int64_t slot, bool transposed, const AttentionCall& call) {
  const int size = call.head_size;
  if constexpr (sizeof(T) == 1) {
    int8_t codes[kMaxHeadSize];
    store_scale(page, slot, quantise_head(x, size, codes), call);
    if (!transposed) std::memcpy(page + slot * size, codes, size);
    else
      for (int d = 0; d < size; ++d) page[int64_t(d) * call.page_tokens + slot] = codes[d];
  } else if (transposed) {
    for (int d = 0; d < size; ++d) store_one(page + int64_t(d) * call.page_tokens + slot, x[d]);
  } else {
    for (int d = 0; d < size; d += kLanes) store(page + slot * size + d, load(x + d));
  }
}

inline void rotate_queries(const AttentionCall& call, int64_t token, int64_t position, int count, int head_begin,
                           int head_end) {
  const int size = call.head_size, half = size / 2, group = call.group();
  for (int i = 0; i < count; ++i, ++token, ++position) {
    const float* row = call.qkv + token * (call.heads + 2 * call.kv_heads) * size;
    const float* cosines = call.cosines + position * half;
    const float* sines = call.sines + position * half;
    for (int kv = head_begin; kv < head_end; ++kv) {
      float* queries = call.queries + (kv * call.tokens + token) * group * size;
      for (int g = 0; g < group; ++g)
        rotate(row + (kv * group + g) * size, cosines, sines, half, call.scale, queries + g * size);
    }
  }
}

using Codes = int8_t[kStoredTogether][kMaxHeadSize];

// to[c][r] = from[r][first + c], 16 × 16 bytes.
inline void transpose(const Codes& from, int first, int8_t* to, int64_t to_stride) {
#if defined(__SSE2__)
  __m128i rows[16], next[16];
  for (int r = 0; r < 16; ++r) rows[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r] + first));
  for (int round = 0; round < 4; ++round) {  // each moves the highest bit of a row's number to the end of a column's
    for (int r = 0; r < 8; ++r) {
      next[2 * r] = _mm_unpacklo_epi8(rows[r], rows[r + 8]);
      next[2 * r + 1] = _mm_unpackhi_epi8(rows[r], rows[r + 8]);
    }
    std::memcpy(rows, next, sizeof rows);
  }
  for (int c = 0; c < 16; ++c) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * to_stride), rows[c]);
#else
  for (int c = 0; c < 16; ++c)
    for (int r = 0; r < 16; ++r) to[c * to_stride + r] = from[r][first + c];
#endif
}

template <class T>
void store_tokens(const AttentionCall& call, const int32_t* pages, int64_t token, int64_t position, int count,
                  int head_begin, int head_end) {
  const int size = call.head_size, half = size / 2, tokens = call.page_tokens;
  const int64_t columns = (call.heads + 2 * call.kv_heads) * size;
  float key[kMaxHeadSize];
  for (int done, i = 0; i < count; i += done) {
    const int32_t page = pages[(position + i) / tokens];
    const int64_t slot = (position + i) % tokens;
    done = sizeof(T) == 1 && slot % kStoredTogether == 0 && count - i >= kStoredTogether ? kStoredTogether : 1;
    for (int kv = head_begin; kv < head_end; ++kv) {
      T* const keys = page_of<T>(call.keys, page, kv, call);
      T* const values = page_of<T>(call.values, page, kv, call);
      Codes codes;
      for (int j = 0; j < done; ++j) {
        const float* const row = call.qkv + (token + i + j) * columns + (call.heads + kv) * size;
        const int64_t at = (position + i + j) * half;
        rotate(row, call.cosines + at, call.sines + at, half, 1.0f, key);
        if constexpr (sizeof(T) == 1) {
          if (done > 1) store_scale(keys, slot + j, quantise_head(key, size, codes[j]), call);
        }
        if (done == 1) store_head(key, keys, slot, true, call);
        store_head(row + call.kv_heads * size, values, slot + j, false, call);
      }
      if constexpr (sizeof(T) == 1) {
        for (int d = 0; done > 1 && d < size; d += 16) transpose(codes, d, keys + int64_t(d) * tokens + slot, tokens);
      }
    }
  }
}

// exp(x) of a score less than the largest, and no less than e^-60: that is nothing beside 1, but what it is multiplied with
// stays a normal number. Subnormal ones take a processor a hundred times as long.
constexpr float kFarthest = -60.0f;

inline F weight_of(F x) { return exponential(maximum(broadcast(kFarthest), x)); }
inline float weight_of(float x) { return exponential(larger(kFarthest, x)); }

// Turns scores [0, n) of a row into weights exp(score - maximum) and zeroes the rest up to `padded`.
inline void normalise(float* scores, int n, int padded, float* maximum_out, float* sum_out) {
  float top = scores[0];
  int i = 0;
  if (n >= kLanes) {
    F m = load(scores);
    for (i = kLanes; i + kLanes <= n; i += kLanes) m = maximum(m, load(scores + i));
    top = largest(m);
  }
  for (; i < n; ++i) top = larger(top, scores[i]);
  const F shift = broadcast(top);
  F total = zero();
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const F weight = weight_of(sub(load(scores + i), shift));
    store(scores + i, weight);
    total = add(total, weight);
  }
  if (i < n) {
    for (int j = n; j < i + kLanes; ++j) scores[j] = -1e30f;
    store(scores + i, weight_of(sub(load(scores + i), shift)));
    for (int j = n; j < i + kLanes; ++j) scores[j] = 0;
    total = add(total, load(scores + i));
    i += kLanes;
  }
  for (; i < padded; i += kLanes) store(scores + i, zero());
  *maximum_out = top;
  *sum_out = sum(total);
}

// into ⊕= part, for one row of `partial_size(head_size)` floats.
inline void merge_row(float* into, const float* part, int head_size) {
  const float top = larger(into[0], part[0]);
  const float less = weight_of(smaller(into[0], part[0]) - top);  // than 1, what the larger one counts
  const float keep = into[0] < top ? less : 1.0f, take = part[0] < top ? less : 1.0f;
  into[0] = top;
  into[1] = into[1] * keep + part[1] * take;
  const F k = broadcast(keep), t = broadcast(take);
  for (int d = 2; d < head_size + 2; d += kLanes) store(into + d, fma(load(part + d), t, mul(load(into + d), k)));
}

inline void write_row(const AttentionCall& call, const AttentionTask& task, int row, const float* partial) {
  const int group = call.group(), size = call.head_size;
  const int64_t token = task.token + row / group;
  float* out = call.out + (token * call.heads + task.kv_head * group + row % group) * size;
  const F scale = broadcast(1.0f / partial[1]);
  for (int d = 0; d < size; d += kLanes) store(out + d, mul(load(partial + 2 + d), scale));
}

// Scratch of one worker, carved from one allocation.
struct Workspace {
  float *scores, *results, *tile, *page;
  Workspace(float* base, const AttentionCall& call) {
    const int partial = partial_size(call.head_size) * kMaxQueryRows;
    scores = base;
    results = scores + kMaxQueryRows * kKeyTile;
    tile = results + partial;
    page = tile + partial;
  }
};

template <class T>
class Attention {
 public:
  Attention(const AttentionCall& call, const AttentionTask& task, float* scratch)
      : call_(call),
        task_(task),
        work_(scratch, call),
        size_(call.head_size),
        stride_(partial_size(call.head_size)),
        group_(call.group()),
        rows_(task.count * group_),
        length_(task.position + task.count) {}

  void run() {
    if (task_.store) {
      const int head = task_.kv_head;
      store_tokens<T>(call_, task_.pages, task_.token, task_.position, task_.count, head, head + 1);
      rotate_queries(call_, task_.token, task_.position, task_.count, head, head + 1);
    }
    for (int tile = task_.tile_begin; tile < task_.tile_end; ++tile) {
      float* to = task_.partials ? task_.partials + int64_t(tile) * rows_ * stride_
                                 : (tile == task_.tile_begin ? work_.results : work_.tile);
      const int first = first_row(tile);
      compute(tile, first, to);
      if (to == work_.tile)
        for (int r = first; r < rows_; ++r) merge_row(work_.results + r * stride_, to + r * stride_, size_);
    }
    if (task_.partials) return;
    for (int r = 0; r < rows_; ++r) write_row(call_, task_, r, work_.results + r * stride_);
  }

 private:
  static constexpr bool kScaled = sizeof(T) == 1;
  static constexpr int kConvertRows = 7;  // from here on, converting a page once beats converting it in each row tile

  // Rows before this one lie wholly before the tile's first key.
  int first_row(int tile) const {
    const int64_t behind = int64_t(tile) * kKeyTile - task_.position;
    return behind > 0 ? int(behind) * group_ : 0;
  }

  // Partial results of rows [first, rows) over the tile.
  void compute(int tile, int first, float* to) {
    const int64_t begin = int64_t(tile) * kKeyTile;
    const int keys = int(smaller<int64_t>(kKeyTile, length_ - begin)), padded = (keys + 15) / 16 * 16;
    const int rows = rows_ - first;
    const float* queries =
        call_.queries + (task_.kv_head * call_.tokens + task_.token) * group_ * size_ + first * size_;
    const int32_t* const pages = task_.pages + begin / call_.page_tokens;
    for (int at = 0, p = 0; at < keys; at += call_.page_tokens, ++p)
      multiply<false>(rows, {queries, size_}, key_page(pages[p]), call_.page_tokens, work_.scores + at, kKeyTile, size_,
                      smaller(call_.page_tokens, padded - at), value_page(pages[p]));
    if (kScaled) scale_columns(call_.keys, pages, rows, padded);
    for (int r = 0; r < rows; ++r) {
      float* partial = to + (first + r) * stride_;
      const int64_t visible = task_.position + (first + r) / group_ + 1 - begin;
      normalise(work_.scores + r * kKeyTile, int(smaller<int64_t>(visible, keys)), padded, partial, partial + 1);
      for (int d = 0; d < size_; d += kLanes) store(partial + 2 + d, zero());
    }
    if (kScaled) scale_columns(call_.values, pages, rows, padded);
    for (int at = 0, p = 0; at < keys; at += call_.page_tokens, ++p) {
      const T* next = begin + at + kKeyTile < length_ ? key_page(pages[p + kKeyTile / call_.page_tokens]) : nullptr;
      multiply<true>(rows, {work_.scores + at, kKeyTile}, value_page(pages[p]), size_, to + first * stride_ + 2, stride_,
                     smaller(call_.page_tokens, keys - at), size_, next);
    }
  }

  // Scores, or weights, times the scale of their column's key, or value. What lies beyond the last key becomes garbage.
  void scale_columns(void* pool, const int32_t* pages, int rows, int columns) {
    for (int at = 0, p = 0; at < columns; at += call_.page_tokens, ++p) {
      const int8_t* page = page_of<const int8_t>(pool, pages[p], task_.kv_head, call_);
      const float* scales = reinterpret_cast<const float*>(page + size_ * call_.page_tokens);
      for (int j = 0; j < smaller(call_.page_tokens, columns - at); j += kLanes) {
        const F scale = load(scales + j);
        for (float* to = work_.scores + at + j, *end = to + rows * kKeyTile; to < end; to += kKeyTile)
          store(to, mul(load(to), scale));
      }
    }
  }

  template <bool kAccumulate>
  void multiply(int rows, Matrix a, const T* b, int b_stride, float* c, int c_stride, int depth, int columns,
                const T* next) {
    if (sizeof(T) == sizeof(float) || rows < kConvertRows) {
      Ahead ahead{reinterpret_cast<const char*>(next), page_elements<T>(call_) * int64_t(sizeof(T))};
      if (!next || rows >= kConvertRows) ahead = {};  // the next page is far off then, and the hardware sees the pattern
      return gemm<kAccumulate>(rows, a, b, b_stride, c, c_stride, depth, columns, ahead);
    }
    for (int i = 0; i < depth * b_stride; i += kLanes) store(work_.page + i, load(b + i));
    gemm<kAccumulate, float>(rows, a, work_.page, b_stride, c, c_stride, depth, columns, {});
  }

  const T* key_page(int32_t page) const { return page_of<const T>(call_.keys, page, task_.kv_head, call_); }
  const T* value_page(int32_t page) const { return page_of<const T>(call_.values, page, task_.kv_head, call_); }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const Workspace work_;
  const int size_, stride_, group_, rows_;
  const int64_t length_;
};

// Calls with an element of the type that the pages hold.
template <class Call>
inline void by_element(Cache cache, Call&& call) {
  switch (cache) {
    case Cache::kFloat32: return call(float{});
    case Cache::kFloat16: return call(Half{});
    case Cache::kInt8: return call(int8_t{});
  }
}

inline void store_tokens(const AttentionCall& call, const int32_t* pages, int64_t token, int64_t position, int count,
                         int head_begin, int head_end) {
  by_element(call.cache, [&](auto element) {
    store_tokens<decltype(element)>(call, pages, token, position, count, head_begin, head_end);
  });
}

inline void attend(const AttentionCall& call, const AttentionTask& task, float* scratch) {
  by_element(call.cache, [&](auto element) { Attention<decltype(element)>(call, task, scratch).run(); });
}

// Asks for the keys that a task begins with, so that they are there when it does.
template <class T>
void fetch_first_keys(const AttentionCall& call, const AttentionTask& task) {
  const int64_t begin = int64_t(task.tile_begin) * kKeyTile;
  const int64_t end = smaller<int64_t>(begin + kKeyTile, task.position + task.count);
  for (int64_t at = begin; at < end; at += call.page_tokens) {
    const T* const page = page_of<const T>(call.keys, task.pages[at / call.page_tokens], task.kv_head, call);
    prefetch(page, page_elements<T>(call));
  }
}

inline void fetch_first_keys(const AttentionCall& call, const AttentionTask& task) {
  by_element(call.cache, [&](auto element) { fetch_first_keys<decltype(element)>(call, task); });
}

// Merges the partial results of tiles [0, tiles) that several tasks left, and writes the rows.
inline void merge(const AttentionCall& call, const AttentionTask& task, float* partials, int tiles) {
  const int rows = task.count * call.group(), stride = partial_size(call.head_size);
  for (int tile = 1; tile < tiles; ++tile)
    for (int r = 0; r < rows; ++r)
      merge_row(partials + r * stride, partials + (int64_t(tile) * rows + r) * stride, call.head_size);
  for (int r = 0; r < rows; ++r) write_row(call, task, r, partials + r * stride);
}

}  // namespace LLMOS_ISA
}  // namespace llmos
