#include "operator.h"

namespace llmos {

const OrtApi* api = nullptr;

namespace {

constexpr int kMaxThreads = 256;

Tensor view(const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api->GetTensorElementType(info, &tensor.type);
  if (!status) status = api->GetDimensionsCount(info, &tensor.rank);
  const bool fits = tensor.rank <= Tensor::kMaxRank;
  if (!status && fits) status = api->GetDimensions(info, tensor.dims.data(), tensor.rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  require(fits, "a tensor has more than 8 dimensions");
  check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

}  // namespace

void check(OrtStatus* status) {
  if (!status) return;
  api->ReleaseStatus(status);
  throw Error("a call into ONNX Runtime failed");
}

OrtStatus* failure(const char* op, const char* what) {
  return api->CreateStatus(kInvalidArgument, (std::string(op) + ": " + what).c_str());
}

int64_t Tensor::elements() const { return rows() * columns(); }

int64_t Tensor::rows() const {
  int64_t product = 1;
  for (size_t i = 0; i + 1 < rank; ++i) product *= dims[i];
  return product;
}

bool Context::has(size_t index) const {
  const OrtValue* value = nullptr;
  check(api->KernelContext_GetInput(context_, index, &value));
  return value != nullptr;
}

Tensor Context::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(api->KernelContext_GetInput(context_, index, &value));
  require(value != nullptr, "an input is missing");
  return view(value);
}

Tensor Context::input(size_t index, ElementType type, size_t rank, const char* name) const {
  const Tensor tensor = input(index);
  if (tensor.type != type) throw Error(std::string(name) + " has the wrong element type");
  if (tensor.rank != rank) throw Error(std::string(name) + " must have " + std::to_string(rank) + " dimensions");
  return tensor;
}

Tensor Context::output(const int64_t* dims, size_t rank) const {
  OrtValue* value = nullptr;
  check(api->KernelContext_GetOutput(context_, 0, dims, rank, &value));
  return view(value);
}

int64_t Attributes::integer(const char* name, int64_t low, int64_t high) const {
  int64_t value = 0;
  check(api->KernelInfoGetAttribute_int64(info_, name, &value));
  if (value < low || value > high) throw Error(std::string("attribute ") + name + " is out of range");
  return value;
}

float Attributes::real(const char* name) const {
  float value = 0;
  check(api->KernelInfoGetAttribute_float(info_, name, &value));
  return value;
}

float Attributes::real_or(const char* name, float fallback) const {
  float value = fallback;
  if (OrtStatus* absent = api->KernelInfoGetAttribute_float(info_, name, &value)) {
    api->ReleaseStatus(absent);
    return fallback;
  }
  return value;
}

int64_t Attributes::integer_or(const char* name, int64_t fallback, int64_t low, int64_t high) const {
  int64_t value = fallback;
  if (OrtStatus* absent = api->KernelInfoGetAttribute_int64(info_, name, &value)) {
    api->ReleaseStatus(absent);
    return fallback;
  }
  return integer(name, low, high);
}

int Attributes::threads() const { return int(integer_or("threads", 1, 1, kMaxThreads)); }

}  // namespace llmos
