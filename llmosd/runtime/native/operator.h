// What every operator needs from ONNX Runtime: tensors, attributes, its thread pool, and a description of itself.
//
// Operators report what is wrong by throwing `Error`; `describe` turns that (and bad_alloc) into an OrtStatus, so that
// no exception crosses the C border.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "ort_abi.h"

namespace llmos {

extern const OrtApi* api;  // set once by RegisterCustomOps

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool condition, const char* message) {
  if (!condition) throw Error(message);
}

constexpr int64_t kMaxSide = 1 << 24;  // of a weight matrix: products of its sides stay far from overflow

void check(OrtStatus* status);  // throws Error on a status that is not OK

struct Tensor {
  static constexpr size_t kMaxRank = 8;

  void* data = nullptr;
  int type = kUndefined;
  size_t rank = 0;
  std::array<int64_t, kMaxRank> dims{};

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t elements() const;
  int64_t rows() const;  // product of all dimensions but the last
  int64_t columns() const { return rank ? dims[rank - 1] : 1; }
};

class Context {
 public:
  explicit Context(OrtKernelContext* context) : context_(context) {}

  bool has(size_t index) const;  // an optional input
  Tensor input(size_t index) const;
  Tensor input(size_t index, ElementType type, size_t rank, const char* name) const;  // throws unless it matches
  Tensor output(const int64_t* dims, size_t rank) const;

  // Runs body(worker) for worker = 0 … threads-1 on the session's pool and waits. Workers may run one after the other
  // on one thread, so a body must not wait for another; nor may it throw.
  template <class Body>
  void parallel(int threads, Body&& body) const {
    if (threads <= 1) return body(0);
    auto call = [](void* user, size_t worker) { (*static_cast<std::remove_reference_t<Body>*>(user))(int(worker)); };
    check(api->KernelContext_ParallelFor(context_, call, size_t(threads), 0, &body));
  }

 private:
  OrtKernelContext* context_;
};

class Attributes {
 public:
  explicit Attributes(const OrtKernelInfo* info) : info_(info) {}

  int64_t integer(const char* name, int64_t low, int64_t high) const;  // required, within [low, high]
  float real(const char* name) const;
  float real_or(const char* name, float fallback) const;
  int64_t integer_or(const char* name, int64_t fallback, int64_t low, int64_t high) const;
  int threads() const;  // 1 unless given

 private:
  const OrtKernelInfo* info_;
};

OrtStatus* failure(const char* op, const char* what);

template <class Call>
OrtStatus* guarded(const char* op, Call&& call) {
  try {
    call();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return failure(op, "out of memory");
  } catch (const std::exception& error) {
    return failure(op, error.what());
  }
}

// The inputs that an operator cannot do without: the first `kRequired`, or all.
template <class Operator, class = void>
struct Required {
  static constexpr size_t kCount = Operator::kInputs.size();
};
template <class Operator>
struct Required<Operator, std::void_t<decltype(Operator::kRequired)>> {
  static constexpr size_t kCount = Operator::kRequired;
};

// An operator is a class with `kName`, `kInputs` and `kOutput` (element types; kUndefined takes any), a constructor from
// Attributes and `void compute(const Context&) const`. It has one output.
template <class Operator>
OrtCustomOp describe() {
  OrtCustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return Operator::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU provider
  op.GetInputType = [](const OrtCustomOp*, size_t index) { return int(Operator::kInputs[index]); };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Operator::kInputs.size(); };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return int(Operator::kOutput); };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t(1); };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Operator*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    constexpr int kRequired = 0, kOptional = 1;
    return index < Required<Operator>::kCount ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    return guarded(Operator::kName, [&] { *kernel = new Operator(Attributes(info)); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return guarded(Operator::kName, [&] { static_cast<const Operator*>(kernel)->compute(Context(context)); });
  };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
  return op;
}

const OrtCustomOp* paged_attention();
const OrtCustomOp* quantised_linear();
const OrtCustomOp* linear();
const OrtCustomOp* swiglu();
const OrtCustomOp* draw_operator();

}  // namespace llmos
