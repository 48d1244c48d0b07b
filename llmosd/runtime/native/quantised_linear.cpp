// llmos.QLinear: x [.., K] times 4- or 8-bit block-quantised weights [N, K] → [.., N].
//
// Activations are quantised to int8 by blocks of 32; each row's result is the same whatever rows accompany it. With the
// attribute `exact` set to 0 many rows may instead be multiplied as bfloat16, where that is faster.
#include <algorithm>
#include <atomic>

#include "kernels/kernels.h"
#include "operator.h"
#include "scratch.h"

namespace llmos {
namespace {

class QuantisedLinear {
 public:
  static constexpr const char* kName = "QLinear";
  static constexpr std::array<ElementType, 3> kInputs{kFloat, kUint8, kFloat16};
  static constexpr ElementType kOutput = kFloat;

  explicit QuantisedLinear(const Attributes& attributes)
      : columns_(attributes.integer("N", 1, kMaxSide)),
        k_(attributes.integer("K", kBlock, kMaxSide)),
        bits_(attributes.integer("bits", 4, 8)),
        exact_(attributes.integer_or("exact", 1, 0, 1) != 0),
        threads_(attributes.threads()) {
    require(bits_ == 4 || bits_ == 8, "bits must be 4 or 8");
    require(k_ % kBlock == 0, "K must be a multiple of 32");
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    const QuantisedWeights weights = read_weights(context);
    require(x.rank >= 1 && x.columns() == k_, "x's last dimension must be K");
    auto dims = x.dims;
    dims[x.rank - 1] = columns_;
    float* y = context.output(dims.data(), x.rank).as<float>();
    const int64_t rows = x.rows();
    if (rows == 0) return;
    if (!exact_ && rows >= kRoundedRows && kernels().rounded4) return multiply_rounded(context, weights, x, rows, y);
    static thread_local Scratch codes, scales;
    Activations activations{codes.reserve<int8_t>(size_t(rows * k_)),
                            scales.reserve<float>(size_t(rows * blocks() * 2)), nullptr, rows};
    activations.sums = activations.scales + rows * blocks();
    quantise(context, x.as<float>(), rows, activations);
    multiply(context, weights, activations, rows, y);
  }

 private:
  static constexpr int kParallelRows = 16;   // fewer are quantised by the calling thread
  static constexpr int kTasksPerThread = 6;  // so that an interrupted core does not hold up the rest
  static constexpr int64_t kRoundedRows = 32;  // fewer do not pay for weights as bfloat16

  int64_t blocks() const { return k_ / kBlock; }
  int64_t groups() const { return (columns_ + kColumns - 1) / kColumns; }

  QuantisedWeights read_weights(const Context& context) const {
    const Tensor codes = context.input(1), scales = context.input(2);
    require(codes.elements() == groups() * kColumns * k_ * bits_ / 8,
            "weight does not have the size that N, K and bits give");
    require(scales.elements() == groups() * kColumns * blocks() * (bits_ == 4 ? 2 : 1),
            "scales do not have the size that N, K and bits give");
    return {codes.as<uint8_t>(), scales.as<Half>(), columns_, k_};
  }

  void quantise(const Context& context, const float* x, int64_t rows, const Activations& a) const {
    const int workers = rows < kParallelRows ? 1 : threads_;
    context.parallel(workers, [&](int worker) {
      for (int64_t r = rows * worker / workers; r < rows * (worker + 1) / workers; ++r)
        kernels().quantise_row(x + r * k_, k_, a.from(r, k_));
    });
  }

  void multiply(const Context& context, const QuantisedWeights& weights, const Activations& a, int64_t rows,
                float* y) const {
    const auto run = bits_ == 4 ? kernels().linear4 : kernels().linear8;
    share(context, 2, [&](int64_t begin, int64_t end) { run(weights, a, rows, begin, end, y); });
  }

  void multiply_rounded(const Context& context, const QuantisedWeights& weights, const Tensor& x, int64_t rows,
                        float* y) const {
    static thread_local Scratch scratch;
    const int64_t padded = (rows + kTileRows - 1) / kTileRows * kTileRows;
    uint32_t* const tiles = scratch.reserve<uint32_t>(size_t(padded * k_ / 2));
    context.parallel(threads_, [&](int worker) {
      for (int64_t r = rows * worker / threads_; r < rows * (worker + 1) / threads_; ++r)
        kernels().round_row(x.as<float>() + r * k_, k_, r, tiles);
    });
    const auto run = bits_ == 4 ? kernels().rounded4 : kernels().rounded8;
    share(context, 4, [&](int64_t begin, int64_t end) { run(weights, tiles, rows, begin, end, y); });
  }

  // Calls task(begin, end) for ranges of groups that are multiples of `together`: as many as a kernel takes at once.
  template <class Task>
  void share(const Context& context, int64_t together, Task&& task) const {
    const int64_t step = std::max<int64_t>(1, groups() / (threads_ * kTasksPerThread * together)) * together;
    std::atomic<int64_t> next{0};
    context.parallel(threads_, [&](int) {
      for (int64_t g; (g = next.fetch_add(step, std::memory_order_relaxed)) < groups();)
        task(g, std::min(groups(), g + step));
    });
  }

  int64_t columns_, k_, bits_;
  bool exact_;
  int threads_;
};

}  // namespace

const OrtCustomOp* quantised_linear() {
  static const OrtCustomOp op = describe<QuantisedLinear>();
  return &op;
}

}  // namespace llmos
