// Holds each set of kernels against the portable one on random data: for processors that only an emulator is at hand for.
//
// Says which sets agree, or exits with 1 at the first kernel that does not.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace llmos {
#define LLMOS_SET(isa)        \
  namespace isa {             \
  extern const Kernels table; \
  }
LLMOS_SETS
#undef LLMOS_SET

namespace {

const Kernels& reference = portable::table;
std::mt19937 random_bits(1);

std::vector<float> normal(size_t count) {
  std::normal_distribution<float> draw;
  std::vector<float> values(count);
  for (float& value : values) value = draw(random_bits);
  return values;
}

std::vector<uint8_t> bytes(size_t count) {
  std::vector<uint8_t> values(count);
  for (uint8_t& value : values) value = uint8_t(random_bits());
  return values;
}

// Of either sign, near 0.01.
std::vector<Half> halves(size_t count) {
  std::vector<Half> values(count);
  for (Half& value : values) value.bits = uint16_t(0x2000 | (random_bits() & 0x83ff));
  return values;
}

void agree(const Kernels& kernels, const char* what, const std::vector<float>& ours, const std::vector<float>& theirs,
           double tolerance) {
  double worst = 0, size = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    worst = std::fmax(worst, std::isfinite(ours[i]) ? std::fabs(double(ours[i]) - theirs[i]) : INFINITY);
    size = std::fmax(size, std::fabs(double(theirs[i])));
  }
  if (worst <= tolerance * size) return;
  std::printf("%s: %s is off by %g of %g\n", kernels.name, what, worst, size);
  std::exit(1);
}

std::vector<float> product(const Kernels& kernels, int bits, const QuantisedWeights& weights, const float* x, int rows) {
  const int64_t k = weights.k, blocks = k / kBlock;
  std::vector<int8_t> codes(rows * k);
  std::vector<float> scales(2 * rows * blocks), y(rows * weights.columns);
  const Activations all{codes.data(), scales.data(), scales.data() + rows * blocks, rows};
  for (int r = 0; r < rows; ++r) kernels.quantise_row(x + r * k, k, all.from(r, k));
  const int64_t groups = (weights.columns + kColumns - 1) / kColumns;
  (bits == 4 ? kernels.linear4 : kernels.linear8)(weights, all, rows, 0, groups, y.data());
  return y;
}

void quantised(const Kernels& kernels, int bits, int rows) {
  const int64_t columns = 37, k = 5 * kBlock, padded = 40;
  const auto codes = bytes(padded * k * bits / 8);
  const auto scales = halves(padded * k / kBlock * 2);
  const auto x = normal(rows * k);
  const QuantisedWeights weights{codes.data(), scales.data(), columns, k};
  agree(kernels, bits == 4 ? "linear4" : "linear8", product(kernels, bits, weights, x.data(), rows),
        product(reference, bits, weights, x.data(), rows), 1e-5);
}

void dense(const Kernels& kernels, int rows) {
  const int64_t columns = 37, k = 75, panels = 3;
  const auto weight = normal(panels * kPanel * k), x = normal(rows * k);
  std::vector<float> ours(rows * columns), theirs(ours);
  kernels.linear32(weight.data(), x.data(), rows, columns, k, 0, panels, ours.data());
  reference.linear32(weight.data(), x.data(), rows, columns, k, 0, panels, theirs.data());
  agree(kernels, "linear32", ours, theirs, 1e-5);
}

void elementwise(const Kernels& kernels, int64_t count) {
  const auto gate = normal(count), up = normal(count);
  std::vector<float> ours(count), theirs(count), maxima(count), others(count);
  kernels.swiglu(gate.data(), up.data(), count, ours.data());
  reference.swiglu(gate.data(), up.data(), count, theirs.data());
  agree(kernels, "swiglu", ours, theirs, 1e-6);
  const float top = kernels.survey(gate.data(), count, maxima.data());
  agree(kernels, "survey", {top}, {reference.survey(gate.data(), count, others.data())}, 0);
  agree(kernels, "survey's maxima", maxima, others, 0);
  std::vector<double> sums(count), expected(count);
  kernels.weigh(gate.data(), count, top, 0.7f, sums.data());
  reference.weigh(gate.data(), count, top, 0.7f, expected.data());
  agree(kernels, "weigh", {sums.begin(), sums.end()}, {expected.begin(), expected.end()}, 1e-5);
}

// A prompt of 9 tokens after `past` others, all heads: what is stored, and what the new tokens attend to.
std::vector<float> attention(const Kernels& kernels, Cache cache, int size, int page_tokens, int past,
                             const std::vector<float>& qkv, const std::vector<float>& angles, bool split) {
  const int heads = 6, kv_heads = 2, count = 9, width = cache == Cache::kFloat32 ? 4 : cache == Cache::kFloat16 ? 2 : 1;
  const int pages = (past + count + page_tokens - 1) / page_tokens, tiles = (past + count + kKeyTile - 1) / kKeyTile;
  const size_t page = size_t(kv_heads) * (size + (width == 1 ? kScaleBytes : 0)) * page_tokens * width;
  std::vector<float> keys(pages * page / 4, NAN), values(keys), queries((past + count) * heads * size);
  std::vector<float> out((past + count) * heads * size), scratch(attention_scratch(size, page_tokens));
  std::vector<int32_t> table(pages);
  for (int i = 0; i < pages; ++i) table[i] = pages - 1 - i;
  AttentionCall call{};
  call.heads = heads, call.kv_heads = kv_heads, call.head_size = size, call.page_tokens = page_tokens;
  call.tokens = past + count, call.scale = 0.2f, call.cache = cache;
  call.qkv = qkv.data(), call.keys = keys.data(), call.values = values.data();
  call.cosines = angles.data(), call.sines = angles.data() + (past + count) * size / 2;
  call.queries = queries.data(), call.out = out.data();
  kernels.rotate_and_store(call, table.data(), 0, 0, past + count, 0, kv_heads);
  std::vector<float> partials(size_t(tiles) * count * call.group() * partial_size(size));
  for (int head = 0; head < kv_heads; ++head) {
    AttentionTask task{};
    task.pages = table.data(), task.token = task.position = past, task.count = count;
    task.kv_head = head, task.tile_end = tiles, task.partials = split ? partials.data() : nullptr;
    kernels.attend(call, task, scratch.data());
    if (split) kernels.merge(call, task, partials.data(), tiles);
  }
  return {out.begin() + int64_t(past) * heads * size, out.end()};
}

void attention(const Kernels& kernels, Cache cache, int size, int page_tokens, int past) {
  const int tokens = past + 9;
  const auto qkv = normal(size_t(tokens) * 10 * size), angles = normal(size_t(tokens) * size);
  for (bool split : {false, true})
    agree(kernels, "attend", attention(kernels, cache, size, page_tokens, past, qkv, angles, split),
          attention(reference, cache, size, page_tokens, past, qkv, angles, false), cache == Cache::kFloat32 ? 1e-5 : 0.01);
}

void compare(const Kernels& kernels) {
  for (int rows : {1, 2, 3, 4, 5, 8, 17, 33}) {
    quantised(kernels, 4, rows);
    quantised(kernels, 8, rows);
    dense(kernels, rows);
  }
  for (int64_t count : {1, 7, 64, 200}) elementwise(kernels, count);
  for (Cache cache : {Cache::kFloat32, Cache::kFloat16, Cache::kInt8})
    for (int past : {0, 130}) {
      attention(kernels, cache, 32, 16, past);
      attention(kernels, cache, 80, 64, past);
    }
  std::printf("%s\n", kernels.name);
}

}  // namespace
}  // namespace llmos

int main() {
  using namespace llmos;
#define LLMOS_SET(isa) compare(isa::table);
  LLMOS_SETS
#undef LLMOS_SET
}
