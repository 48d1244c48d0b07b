// llmos.Linear: x [.., K] times float32 weights [N, K] → [.., N].
//
// For float32 weights: each element is one chain of multiply-adds in ascending k, so a row's bits do not depend on how many
// rows are computed with it or by how many threads, which a general matrix multiplication does not promise.
#include <algorithm>
#include <atomic>

#include "kernels/kernels.h"
#include "operator.h"

namespace llmos {
namespace {

class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr std::array<ElementType, 2> kInputs{kFloat, kFloat};
  static constexpr ElementType kOutput = kFloat;

  explicit Linear(const Attributes& attributes)
      : columns_(attributes.integer("N", 1, kMaxSide)),
        k_(attributes.integer("K", 1, kMaxSide)),
        threads_(attributes.threads()) {}

  void compute(const Context& context) const {
    const Tensor x = context.input(0), weight = context.input(1);
    require(x.rank >= 1 && x.columns() == k_, "x's last dimension must be K");
    require(weight.elements() == panels() * kPanel * k_, "weight does not have the size that N and K give");
    auto dims = x.dims;
    dims[x.rank - 1] = columns_;
    float* y = context.output(dims.data(), x.rank).as<float>();
    multiply(context, weight.as<float>(), x.as<float>(), x.rows(), y);
  }

 private:
  static constexpr int kTasksPerThread = 6;

  int64_t panels() const { return (columns_ + kPanel - 1) / kPanel; }

  void multiply(const Context& context, const float* weight, const float* x, int64_t rows, float* y) const {
    const int64_t step = std::max<int64_t>(1, panels() / (threads_ * kTasksPerThread));
    std::atomic<int64_t> next{0};
    context.parallel(threads_, [&](int) {
      for (int64_t p; (p = next.fetch_add(step, std::memory_order_relaxed)) < panels();)
        for (int64_t r = 0; r < rows; r += kMaxLinearRows) {
          const int count = int(std::min<int64_t>(kMaxLinearRows, rows - r));
          kernels().linear32(weight, x + r * k_, count, columns_, k_, p, std::min(panels(), p + step),
                             y + r * columns_);
        }
    });
  }

  int64_t columns_, k_;
  int threads_;
};

}  // namespace

const OrtCustomOp* linear() {
  static const OrtCustomOp op = describe<Linear>();
  return &op;
}

}  // namespace llmos
