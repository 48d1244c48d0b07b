// llmos.SwiGLU: [.., 2F] (gate, then up) → [.., F] = gate · sigmoid(gate) · up.
#include "kernels/kernels.h"
#include "operator.h"

namespace llmos {
namespace {

class SwiGLU {
 public:
  static constexpr const char* kName = "SwiGLU";
  static constexpr std::array<ElementType, 1> kInputs{kFloat};
  static constexpr ElementType kOutput = kFloat;

  explicit SwiGLU(const Attributes& attributes) : threads_(attributes.threads()) {}

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    require(x.rank >= 1 && x.columns() % 2 == 0, "gate_up's last dimension must be even");
    auto dims = x.dims;
    const int64_t rows = x.rows(), width = x.columns() / 2;
    dims[x.rank - 1] = width;
    float* y = context.output(dims.data(), x.rank).as<float>();
    const int workers = rows < kParallelRows ? 1 : threads_;
    context.parallel(workers, [&](int worker) {
      for (int64_t r = rows * worker / workers; r < rows * (worker + 1) / workers; ++r) {
        const float* gate = x.as<float>() + 2 * r * width;
        kernels().swiglu(gate, gate + width, width, y + r * width);
      }
    });
  }

 private:
  static constexpr int64_t kParallelRows = 8;  // fewer are not worth a hand-over
  int threads_;
};

}  // namespace

const OrtCustomOp* swiglu() {
  static const OrtCustomOp op = describe<SwiGLU>();
  return &op;
}

}  // namespace llmos
