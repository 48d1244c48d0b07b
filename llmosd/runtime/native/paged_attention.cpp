// llmos.PagedAttention: causal attention of a ragged batch over a paged K/V pool that is updated in place.
//
//   qkv [T, (H + 2 KH) D], key_cache [P, KH, D, S], value_cache [P, KH, S, D] (float32, float16 or int8),
//   cumulative_lengths [B + 1], past_lengths [B], page_table [B, MP] (int32), cos, sin [C, D / 2]
//   → [T, H D]
//
// Int8 caches are [P, KH, D + 4, S] and [P, KH, S, D + 4]: the bytes of a page and KV head are its codes, [D, S] or
// [S, D], and then S float32 scales. A token's key is code · scale with scale = max |key| / 127, so each element is off
// by at most half a scale; likewise its value.
//
// Sequence b's tokens are rows cumulative_lengths[b] … of qkv, at positions past_lengths[b] …; position p lives in slot
// p % S of page page_table[b, p / S]. Every length and every page id in use is checked before anything is read or
// written; table entries and slots beyond a sequence's length may hold anything. Sequences may share pages to read; a
// page that one of them writes to in this step must be its own.
//
// A row's result is the same whatever rows accompany it. With the attribute `exact` set to 0 a sequence's attention may
// instead be computed in bfloat16 where it has several query rows, unless its cache is float32.
#include <algorithm>
#include <vector>

#include "kernels/kernels.h"
#include "operator.h"
#include "scratch.h"
#include "shared.h"

namespace llmos {
namespace {

struct Sequence {
  const int32_t* pages;
  int64_t token, past;
  int count;
  bool rounded;
  int64_t length() const { return past + count; }
  int tiles() const { return int((length() + kKeyTile - 1) / kKeyTile); }
};

// The operator's inputs, checked.
struct Inputs {
  AttentionCall call;
  std::vector<Sequence> sequences;  // those that have tokens in this step
};

struct Split {  // one (sequence, KV head) whose tiles are divided between tasks
  AttentionTask whole;
  int64_t offset;  // of its partial results
};

struct Schedule {
  std::vector<Sequence> stored_first;  // sequences whose new tokens several tasks read; the other tasks store their own
  std::vector<AttentionTask> tasks;    // longest first
  std::vector<int64_t> offsets;        // of a task's partial results, or -1
  std::vector<Split> splits;
  int64_t partials = 0;
};

Cache cache_of(const Tensor& keys) {
  require(keys.type == kFloat || keys.type == kFloat16 || keys.type == kInt8,
          "key_cache must be float32, float16 or int8");
  return keys.type == kFloat ? Cache::kFloat32 : keys.type == kFloat16 ? Cache::kFloat16 : Cache::kInt8;
}

class PagedAttention {
 public:
  static constexpr const char* kName = "PagedAttention";
  static constexpr std::array<ElementType, 8> kInputs{kFloat, kUndefined, kUndefined, kInt32,
                                                      kInt32, kInt32,     kFloat,     kFloat};
  static constexpr ElementType kOutput = kFloat;

  explicit PagedAttention(const Attributes& attributes)
      : heads_(int(attributes.integer("num_heads", 1, 1 << 16))),
        kv_heads_(int(attributes.integer("kv_num_heads", 1, 1 << 16))),
        scale_(attributes.real("scale")),
        exact_(attributes.integer_or("exact", 1, 0, 1) != 0),
        threads_(attributes.threads()) {
    require(heads_ % kv_heads_ == 0, "num_heads must be a multiple of kv_num_heads");
    require(heads_ / kv_heads_ <= kMaxGroup, "more than 48 query heads share a KV head");
  }

  void compute(const Context& context) const {
    Inputs inputs = read(context);
    AttentionCall& call = inputs.call;
    const int64_t dims[] = {call.tokens, int64_t(call.heads) * call.head_size};
    call.out = context.output(dims, 2).as<float>();
    static thread_local Scratch queries, scratch, partials;
    call.queries = queries.reserve<float>(size_t(call.tokens) * call.heads * call.head_size);
    Schedule schedule = plan(inputs);
    store_tokens(context, call, schedule.stored_first);
    attend(context, call, schedule, scratch, partials);
  }

 private:
  static constexpr int kParallelTokens = 16;  // fewer are stored by the calling thread: a hand-over costs more
  static constexpr int kTasksPerThread = 4;   // so that an interrupted core does not hold up the rest
  static constexpr int kRoundedRows = 8;      // fewer query rows do not pay for keys and values as bfloat16
  static constexpr int kRoundedGain = 4;      // how much faster they are then, about

  Inputs read(const Context& context) const;
  void read_sequences(const Context& context, const Tensor& table, int64_t pages, int64_t context_length,
                      Inputs& inputs) const;
  void store_tokens(const Context& context, const AttentionCall& call, const std::vector<Sequence>& sequences) const;
  Schedule plan(const Inputs& inputs) const;
  bool rounds(const AttentionCall& call, int count) const;
  int rounded_tile(const Inputs& inputs) const;
  static void add_tiles(const Sequence& s, int head, int tile, bool store, Schedule& schedule);
  static void add_split(const AttentionCall& call, const Sequence& s, int head, int step, Schedule& schedule);
  void attend(const Context& context, const AttentionCall& call, Schedule& schedule, Scratch& scratch,
              Scratch& partials) const;

  int heads_, kv_heads_;
  float scale_;
  bool exact_;
  int threads_;
};

Inputs PagedAttention::read(const Context& context) const {
  const Tensor qkv = context.input(0, kFloat, 2, "qkv");
  const Tensor keys = context.input(1), values = context.input(2);
  const Tensor table = context.input(5, kInt32, 2, "page_table");
  const Tensor cosines = context.input(6, kFloat, 2, "cos"), sines = context.input(7, kFloat, 2, "sin");

  const Cache cache = cache_of(keys);
  const int64_t scale_bytes = cache == Cache::kInt8 ? kScaleBytes : 0;
  require(values.type == keys.type, "value_cache must have key_cache's element type");
  require(keys.rank == 4 && values.rank == 4, "key_cache and value_cache must have 4 dimensions");
  const int64_t pages = keys.dims[0], size = keys.dims[2] - scale_bytes, page_tokens = keys.dims[3];
  require(size >= 32 && size <= kMaxHeadSize && size % 16 == 0,
          "the head size must be a multiple of 16 from 32 to 256");
  require(page_tokens == 16 || page_tokens == 32 || page_tokens == 64 || page_tokens == 128,
          "pages must hold 16, 32, 64 or 128 tokens");
  require(keys.dims[1] == kv_heads_, "key_cache's dimension 1 must be kv_num_heads");
  require(values.dims[0] == pages && values.dims[1] == kv_heads_ && values.dims[2] == page_tokens &&
              values.dims[3] == size + scale_bytes,
          "value_cache must be [pages, kv_num_heads, page tokens, head size], of int8 4 wider");
  require(uintptr_t(keys.data) % sizeof(float) == 0 && uintptr_t(values.data) % sizeof(float) == 0,
          "key_cache and value_cache must be aligned to 4 bytes");
  require(qkv.dims[1] == int64_t(heads_ + 2 * kv_heads_) * size,
          "qkv must have (num_heads + 2 kv_num_heads) * head size columns");
  require(cosines.dims[1] == size / 2 && sines.dims == cosines.dims, "cos and sin must be [context, head size / 2]");

  Inputs inputs;
  inputs.call = {heads_,
                 kv_heads_,
                 int(size),
                 int(page_tokens),
                 qkv.dims[0],
                 table.dims[1],
                 scale_,
                 cache,
                 qkv.as<float>(),
                 keys.data,
                 values.data,
                 cosines.as<float>(),
                 sines.as<float>(),
                 nullptr,
                 nullptr};
  read_sequences(context, table, pages, cosines.dims[0], inputs);
  return inputs;
}

void PagedAttention::read_sequences(const Context& context, const Tensor& table, int64_t pages, int64_t context_length,
                                    Inputs& inputs) const {
  const Tensor cumulative = context.input(3, kInt32, 1, "cumulative_lengths");
  const Tensor past = context.input(4, kInt32, 1, "past_lengths");
  const int64_t batch = past.dims[0], page_tokens = inputs.call.page_tokens;
  require(cumulative.dims[0] == batch + 1 && table.dims[0] == batch,
          "cumulative_lengths must have one entry more than past_lengths, page_table as many rows");
  const int32_t* starts = cumulative.as<int32_t>();
  require(starts[0] == 0 && starts[batch] == inputs.call.tokens,
          "cumulative_lengths must run from 0 to the number of tokens");
  for (int64_t b = 0; b < batch; ++b) {
    require(starts[b] <= starts[b + 1], "cumulative_lengths must not decrease");
    const Sequence s{table.as<int32_t>() + b * table.dims[1], starts[b], past.as<int32_t>()[b],
                     starts[b + 1] - starts[b], rounds(inputs.call, starts[b + 1] - starts[b])};
    require(s.past >= 0, "a past length is negative");
    if (s.count == 0) continue;
    require(s.length() <= context_length, "a sequence is longer than the cos and sin tables");
    require(s.length() <= table.dims[1] * page_tokens, "a sequence is longer than its row of the page table");
    for (int64_t i = 0; i * page_tokens < s.length(); ++i)
      require(s.pages[i] >= 0 && s.pages[i] < pages, "a page id is out of range");
    inputs.sequences.push_back(s);
  }
}

void PagedAttention::store_tokens(const Context& context, const AttentionCall& call,
                                  const std::vector<Sequence>& sequences) const {
  if (sequences.empty()) return;
  const int workers = call.tokens < kParallelTokens ? 1 : threads_;
  const int64_t parts = (call.tokens + kStoredTogether - 1) / kStoredTogether;
  context.parallel(workers, [&](int worker) {
    const int64_t from = parts * worker / workers * kStoredTogether;
    const int64_t to = std::min(call.tokens, parts * (worker + 1) / workers * kStoredTogether);
    for (const Sequence& s : sequences) {
      const int64_t begin = std::max(from, s.token), end = std::min(to, s.token + s.count);
      if (begin >= end) continue;
      const int64_t position = s.past + begin - s.token;
      kernels().store_tokens(call, s.pages, begin, position, int(end - begin), 0, call.kv_heads);
      if (!s.rounded) kernels().rotate_queries(call, begin, position, int(end - begin), 0, call.kv_heads);
    }
  });
}

// Query tiles of prefill are tasks of their own; a single query becomes several only if there is too little else to do.
// The division never changes a result (see kernels/attention.h), so it may depend on the load.
Schedule PagedAttention::plan(const Inputs& inputs) const {
  const AttentionCall& call = inputs.call;
  const int tile = std::max(1, kMaxQueryRows / call.group()), rounded = rounded_tile(inputs);
  int64_t work = 0;
  for (const Sequence& s : inputs.sequences) work += int64_t(s.tiles()) * s.count / (s.rounded ? kRoundedGain : 1);
  const int64_t fair = std::max<int64_t>(1, work * call.kv_heads / (threads_ * kTasksPerThread));

  Schedule schedule;
  for (const Sequence& s : inputs.sequences) {
    const int most = s.rounded ? rounded : tile;
    const bool split = s.count == 1 && threads_ > 1 && s.tiles() > fair, whole = !split && s.count <= most;
    if (!whole) schedule.stored_first.push_back(s);
    for (int head = 0; head < call.kv_heads; ++head)
      split ? add_split(call, s, head, int(fair), schedule) : add_tiles(s, head, most, whole, schedule);
  }
  return schedule;
}

bool PagedAttention::rounds(const AttentionCall& call, int count) const {
  return !exact_ && kernels().attend_rounded && call.cache != Cache::kFloat32 && call.head_size % kBlock == 0 &&
         count > 1 && count * call.group() >= kRoundedRows;
}

// Tokens of one task in bfloat16. Each task unpacks the keys and values that it sees, which takes about as long as a
// block of its rows: long tasks are less work in all, short ones are better shared out. Taken longest first they are done
// after work / threads + longest · (1 − 1 / threads) at the latest (Graham, 1969), and that is to be least.
int PagedAttention::rounded_tile(const Inputs& inputs) const {
  const AttentionCall& call = inputs.call;
  const auto cost = [&](int tokens) {
    return tokens ? (tokens * call.group() + kRoundedBlock - 1) / kRoundedBlock + 1 : 0;
  };
  int best = 1;
  int64_t least = INT64_MAX;
  for (int blocks = 1; blocks <= kMaxRoundedRows / kRoundedBlock; ++blocks) {
    const int tile = std::max(1, blocks * kRoundedBlock / call.group());
    int64_t work = 0, longest = 0;
    for (const Sequence& s : inputs.sequences) {
      if (!s.rounded) continue;
      work += s.tiles() * call.kv_heads * (s.count / tile * cost(tile) + cost(s.count % tile));
      longest = std::max<int64_t>(longest, s.tiles() * cost(std::min(tile, s.count)));
    }
    const int64_t latest = work + (threads_ - 1) * longest;
    if (latest < least) best = tile, least = latest;
  }
  return best;
}

void PagedAttention::add_tiles(const Sequence& s, int head, int tile, bool store, Schedule& schedule) {
  for (int at = 0; at < s.count; at += tile) {
    const int count = std::min(tile, s.count - at);
    const int end = int((s.past + at + count + kKeyTile - 1) / kKeyTile);
    schedule.tasks.push_back({s.pages, s.token + at, s.past + at, count, head, 0, end, store, s.rounded, nullptr});
    schedule.offsets.push_back(-1);
  }
}

void PagedAttention::add_split(const AttentionCall& call, const Sequence& s, int head, int step, Schedule& schedule) {
  const int tiles = s.tiles();
  const AttentionTask whole{s.pages, s.token, s.past, 1, head, 0, tiles, false, false, nullptr};
  schedule.splits.push_back({whole, schedule.partials});
  for (int begin = 0; begin < tiles; begin += step) {
    AttentionTask part = whole;
    part.tile_begin = begin;
    part.tile_end = std::min(tiles, begin + step);
    schedule.tasks.push_back(part);
    schedule.offsets.push_back(schedule.partials);
  }
  schedule.partials += int64_t(tiles) * call.group() * partial_size(call.head_size);
}

void PagedAttention::attend(const Context& context, const AttentionCall& call, Schedule& schedule, Scratch& scratch,
                            Scratch& partials) const {
  float* results = partials.reserve<float>(size_t(schedule.partials));
  for (size_t i = 0; i < schedule.tasks.size(); ++i)
    if (schedule.offsets[i] >= 0) schedule.tasks[i].partials = results + schedule.offsets[i];
  const auto cost = [](const AttentionTask& task) {
    return int64_t(task.tile_end - task.tile_begin) * task.count * (task.rounded ? 1 : kRoundedGain);
  };
  std::stable_sort(schedule.tasks.begin(), schedule.tasks.end(),
            [&](const AttentionTask& a, const AttentionTask& b) { return cost(a) > cost(b); });

  const size_t size =
      std::max(attention_scratch(call.head_size, call.page_tokens), rounded_attention_scratch(call.head_size));
  float* memory = scratch.reserve<float>(size * threads_);
  static thread_local Dealt kept;
  Dealt& deal = kept;  // the workers take from this thread's
  const int count = int(schedule.tasks.size()), workers = std::min(threads_, count);
  deal.open(count, workers);
  context.parallel(workers, [&](int worker) {
    deal.take(worker, [&](int64_t i) {
      const AttentionTask& task = schedule.tasks[size_t(i)];
      if (i + 1 < count && !task.rounded) kernels().fetch_first_keys(call, schedule.tasks[size_t(i) + 1]);
      (task.rounded ? kernels().attend_rounded : kernels().attend)(call, task, memory + worker * size);
    });
  });
  for (const Split& split : schedule.splits)
    kernels().merge(call, split.whole, results + split.offset, split.whole.tile_end);
}

}  // namespace

const OrtCustomOp* paged_attention() {
  static const OrtCustomOp op = describe<PagedAttention>();
  return &op;
}

}  // namespace llmos
