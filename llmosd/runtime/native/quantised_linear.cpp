// llmos.QLinear: x [.., K] times 4- or 8-bit block-quantised weights [N, K] → [.., N], with what stands before and
// after such a product in a decoder layer: y = residual + gated(W · norm(x)), each part if it is asked for.
//
//   x, codes, scales, gain [K] (optional: root-mean-square norm of x with attribute epsilon), residual (optional, as y)
//   gated = 1: of each 32 rows of W 16 give gates and 16 what they multiply; y [.., N / 2] = gate · sigmoid(gate) · up
//
// Activations are quantised to int8 by blocks of 32; each row's result is the same whatever rows accompany it. With the
// attribute `exact` set to 0 many rows may instead be multiplied as bfloat16, where that is faster.
#include <algorithm>
#include <memory>

#include "kernels/kernels.h"
#include "operator.h"
#include "scratch.h"
#include "shared.h"

namespace llmos {
namespace {

// Rows [begin, end) of a call: they are prepared, and then multiplied by ranges of columns.
struct Rows {
  int64_t begin, end;
  Shared prepared;
  Dealt multiplied;
};

// Row ranges that a thread keeps between calls.
class RowRanges {
 public:
  Rows* reserve(int64_t count) {
    if (count > capacity_) {
      ranges_ = std::make_unique<Rows[]>(size_t(count));
      capacity_ = count;
    }
    return ranges_.get();
  }

 private:
  std::unique_ptr<Rows[]> ranges_;
  int64_t capacity_ = 0;
};

class QuantisedLinear {
 public:
  static constexpr const char* kName = "QLinear";
  static constexpr std::array<ElementType, 5> kInputs{kFloat, kUint8, kFloat16, kFloat, kFloat};
  static constexpr size_t kRequired = 3;
  static constexpr ElementType kOutput = kFloat;

  explicit QuantisedLinear(const Attributes& attributes)
      : columns_(attributes.integer("N", 1, kMaxSide)),
        k_(attributes.integer("K", kBlock, kMaxSide)),
        bits_(attributes.integer("bits", 4, 8)),
        exact_(attributes.integer_or("exact", 1, 0, 1) != 0),
        gated_(attributes.integer_or("gated", 0, 0, 1) != 0),
        epsilon_(attributes.real_or("epsilon", 0)),
        threads_(attributes.threads()) {
    require(bits_ == 4 || bits_ == 8, "bits must be 4 or 8");
    require(k_ % kBlock == 0, "K must be a multiple of 32");
    require(!gated_ || columns_ % (2 * kGated) == 0, "N of a gated product must be a multiple of 32");
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    require(x.rank >= 1 && x.columns() == k_, "x's last dimension must be K");
    Call call{read_weights(context), x.as<float>(), read_gain(context), nullptr, nullptr, x.rows()};
    auto dims = x.dims;
    dims[x.rank - 1] = width();
    call.y = context.output(dims.data(), x.rank).as<float>();
    call.residual = read_residual(context, call.rows);
    if (call.rows == 0) return;
    if (!exact_ && call.rows >= kRoundedRows && kernels().rounded4) return multiply_rounded(context, call);
    multiply(context, call);
  }

 private:
  static constexpr int kTasksPerThread = 6;      // so that an interrupted core does not hold up the rest
  static constexpr int64_t kStripeWidth = kStripeGroups * kColumns;
  static constexpr int64_t kRoundedRows = 16;    // fewer do not pay for weights as bfloat16
  static constexpr int64_t kRangeRows = 128;     // with what they become they stay in one core's second-level cache

  struct Call {
    QuantisedWeights weights;
    const float *x, *gain, *residual;  // of the latter two null if there is none
    float* y;
    int64_t rows;
  };

  int64_t blocks() const { return k_ / kBlock; }
  int64_t groups() const { return (columns_ + kColumns - 1) / kColumns; }
  static int64_t row_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
  int64_t width() const { return gated_ ? columns_ / 2 : columns_; }

  QuantisedWeights read_weights(const Context& context) const {
    const Tensor codes = context.input(1), scales = context.input(2);
    require(codes.elements() == groups() * kColumns * k_ * bits_ / 8,
            "weight does not have the size that N, K and bits give");
    require(scales.elements() == groups() * kColumns * blocks() * (bits_ == 4 ? 2 : 1),
            "scales do not have the size that N, K and bits give");
    return {codes.as<uint8_t>(), scales.as<Half>(), columns_, k_};
  }

  const float* read_gain(const Context& context) const {
    if (!context.has(3)) return nullptr;
    const Tensor gain = context.input(3);
    require(gain.elements() == k_, "gain must have K elements");
    return gain.as<float>();
  }

  const float* read_residual(const Context& context, int64_t rows) const {
    if (!context.has(4)) return nullptr;
    const Tensor residual = context.input(4);
    require(residual.rank >= 1 && residual.columns() == width() && residual.rows() == rows,
            "residual must have y's shape");
    return residual.as<float>();
  }

  void multiply(const Context& context, const Call& call) const {
    static thread_local Scratch codes, scales;
    float* const of_blocks = scales.reserve<float>(size_t(call.rows * blocks() * 2));
    const Activations all{codes.reserve<int8_t>(size_t(call.rows * k_)), of_blocks, of_blocks + call.rows * blocks(),
                          call.rows};
    const auto run = bits_ == 4 ? kernels().linear4 : kernels().linear8;
    share(
        context, call, range_count(call.rows),
        [&](const float* row, int64_t r) { kernels().quantise_row(row, k_, all.from(r, k_)); },
        [&](int64_t r, int64_t count, int64_t begin, int64_t end, const Output& y) {
          run(call.weights, all.from(r, k_), count, begin, end, y);
        });
  }

  void multiply_rounded(const Context& context, const Call& call) const {
    static thread_local Scratch scratch;
    uint32_t* const tiles = scratch.reserve<uint32_t>(size_t(row_tiles(call.rows) * kTileRows * k_ / 2));
    const auto run = bits_ == 4 ? kernels().rounded4 : kernels().rounded8;
    share(
        context, call, rounded_range_count(call.rows),
        [&](const float* row, int64_t r) { kernels().round_row(row, k_, r, tiles); },
        [&](int64_t r, int64_t count, int64_t begin, int64_t end, const Output& y) {
          run(call.weights, tiles + r * k_ / 2, count, begin, end, y);
        });
  }

  // Few rows are one range that all workers share. Of many, each worker begins with ranges of its own, the same from
  // operator to operator, so that rows stay in its cache; then it helps with the others'.
  int64_t range_count(int64_t rows) const {
    if (rows < threads_ * kRangeRows / 2) return 1;
    return (rows + threads_ * kRangeRows - 1) / (threads_ * kRangeRows) * threads_;
  }

  // Weights are unpacked anew for each range, and one tile of rows more than another worker has is much of a few: one
  // round of ranges pays if they are even.
  int64_t rounded_range_count(int64_t rows) const {
    const int64_t count = range_count(rows);
    return count == threads_ && row_tiles(rows) % threads_ ? 1 : count;
  }

  // Whole tiles of rows, as evenly as that can be.
  void open(Rows* ranges, int64_t count, int64_t rows, int64_t tasks) const {
    const int64_t tiles = row_tiles(rows);
    for (int64_t i = 0; i < count; ++i) {
      ranges[i].begin = tiles * i / count * kTileRows;
      ranges[i].end = std::min(rows, tiles * (i + 1) / count * kTileRows);
      ranges[i].prepared.open(ranges[i].end - ranges[i].begin);
      ranges[i].multiplied.open(tasks, threads_);
    }
  }

  // In `count` ranges: prepare(row, r) makes row r of x, normed, what the products take; product(r, rows, begin, end, y)
  // gives those of rows [r, r + rows) and column groups [begin, end).
  template <class Prepare, class Product>
  void share(const Context& context, const Call& call, int64_t count, Prepare&& prepare, Product&& product) const {
    static thread_local Scratch scratch;
    static thread_local RowRanges kept;
    const int64_t stripes = (groups() + kStripeGroups - 1) / kStripeGroups;
    const int64_t tasks = std::min<int64_t>(stripes, threads_ > 1 ? threads_ * kTasksPerThread : 1);
    Rows* const ranges = kept.reserve(count);
    open(ranges, count, call.rows, tasks);
    const int64_t widest = (stripes + tasks - 1) / tasks * kStripeWidth;
    const int64_t highest = (row_tiles(call.rows) + count - 1) / count * kTileRows;
    const int64_t aside = std::max(k_, highest * widest);  // floats of one worker
    float* const memory = scratch.reserve<float>(size_t(aside * threads_));
    context.parallel(threads_, [&](int worker) {
      float* const own = memory + worker * aside;
      for (int64_t i = 0; i < count; ++i) {
        Rows& rows = ranges[count == 1 ? 0 : i / threads_ * threads_ + (i + worker) % threads_];
        const int64_t some = std::max<int64_t>(1, (rows.end - rows.begin) / kTasksPerThread);
        rows.prepared.take(some, [&](int64_t from, int64_t to) {
          for (int64_t r = rows.begin + from; r < rows.begin + to; ++r) prepare(normed(call, r, own), r);
        });
        rows.prepared.wait();
        rows.multiplied.take(worker, [&](int64_t task) {
          multiply_part(call, rows.begin, rows.end - rows.begin, stripes * task / tasks * kStripeGroups,
                        std::min(groups(), stripes * (task + 1) / tasks * kStripeGroups), own, product);
        });
      }
    });
  }

  const float* normed(const Call& call, int64_t row, float* own) const {
    const float* const x = call.x + row * k_;
    if (!call.gain) return x;
    kernels().normalise_row(x, call.gain, epsilon_, k_, own);
    return own;
  }

  // Straight into y, or aside for as long as it takes to make of it what y is to hold. Many rows go aside in any
  // case: those of y are often a multiple of a page apart, and share few lines of a cache.
  template <class Product>
  void multiply_part(const Call& call, int64_t row, int64_t count, int64_t begin, int64_t end, float* own,
                     Product&& product) const {
    const int64_t first = begin * kColumns, past = std::min(columns_, end * kColumns);
    const int64_t offset = row * width();
    if (!gated_ && !call.residual && count < kTileRows)
      return product(row, count, begin, end, Output{call.y + offset + first, width(), kStripeWidth});
    product(row, count, begin, end, Output{own, kStripeWidth, count * kStripeWidth});
    for (int64_t c = first; c < past; c += kStripeWidth, own += count * kStripeWidth) {
      const int64_t at = offset + (gated_ ? c / 2 : c);
      kernels().finish(own, count, int(std::min<int64_t>(kStripeWidth, past - c)), gated_,
                       call.residual ? call.residual + at : nullptr, call.y + at, width());
    }
  }

  int64_t columns_, k_, bits_;
  bool exact_, gated_;
  float epsilon_;
  int threads_;
};

}  // namespace

const OrtCustomOp* quantised_linear() {
  static const OrtCustomOp op = describe<QuantisedLinear>();
  return &op;
}

}  // namespace llmos
