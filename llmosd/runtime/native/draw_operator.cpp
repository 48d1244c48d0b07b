// llmos.Draw: logits [R, V] and a stream for each row [R] → the token drawn from it [R].
//
// A stream is the address of its `Parameters`, or 0 for a row that nothing is drawn from. At the end of
// a step the logits are still in the caches, and the threads awake.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>

#include "draw.h"
#include "export.h"
#include "operator.h"

// When the last draw within a graph ended, in nanoseconds of the steady clock: the end of a step's operators.
LLMOS_EXPORT std::atomic<int64_t> llmos_draw_ended_ns;
std::atomic<int64_t> llmos_draw_ended_ns{0};

namespace llmos {
namespace {

class Draw {
 public:
  static constexpr const char* kName = "Draw";
  static constexpr std::array<ElementType, 2> kInputs{kFloat, kInt64};
  static constexpr ElementType kOutput = kInt64;

  explicit Draw(const Attributes& attributes) : threads_(attributes.threads()) {}

  void compute(const Context& context) const {
    const Tensor logits = context.input(0, kFloat, 2, "logits"), streams = context.input(1, kInt64, 1, "streams");
    const int64_t rows = logits.dims[0], length = logits.dims[1];
    require(streams.dims[0] == rows, "streams must have one entry for each row of logits");
    require(length > 0, "rows of logits are empty");
    int64_t* tokens = context.output(&rows, 1).as<int64_t>();
    auto* const* asked = streams.as<Parameters*>();
    const int64_t drawn = rows - std::count(asked, asked + rows, nullptr);
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    context.parallel(int(std::min<int64_t>(threads_, drawn)), [&](int) {
      static thread_local Memory memory;
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < rows;) try {
          tokens[i] = asked[i] ? draw(logits.as<float>() + i * length, length, asked, i, memory) : kNoToken;
        } catch (const std::bad_alloc&) {
          failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    llmos_draw_ended_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  }

 private:
  int threads_;
};

}  // namespace

const OrtCustomOp* draw_operator() {
  static const OrtCustomOp op = describe<Draw>();
  return &op;
}

}  // namespace llmos
