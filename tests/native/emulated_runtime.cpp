// As much of ONNX Runtime as one operator needs to run: for processors that only an emulator is at hand for.
//
// Standard input: the set of kernels, the operator, then its attributes and inputs, one a line, an input's bytes behind
// its line. Standard output: `ok`, the output and every input as they are afterwards in the same form, or what the
// operator complained of.
//
//   int NAME VALUE | real NAME VALUE | tensor TYPE DIM … | absent | run
#include <cstdio>
#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "export.h"
#include "ort_abi.h"

struct OrtStatus {
  std::string words;
};
struct OrtValue {
  int type = 0;
  std::vector<int64_t> dims;
  std::vector<uint64_t> memory;  // aligned for any type
  bool there = true;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> reals;
};
struct OrtKernelContext {
  std::vector<OrtValue> inputs;
  OrtValue output;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> operators;
};

LLMOS_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
LLMOS_EXPORT int llmos_use_kernels(const char* name);

namespace {

OrtCustomOpDomain domain;
const OrtApi* table;

OrtStatus* status(const char* words) { return words ? new OrtStatus{words} : nullptr; }

size_t bytes_of(const OrtValue& value) {
  size_t count = 1;
  for (int64_t dim : value.dims) count *= size_t(dim);
  switch (value.type) {
    case llmos::kFloat: case llmos::kInt32: return 4 * count;
    case llmos::kFloat16: return 2 * count;
    case llmos::kInt64: return 8 * count;
    default: return count;
  }
}

const OrtValue& described_by(const OrtTensorTypeAndShapeInfo* info) { return *reinterpret_cast<const OrtValue*>(info); }

void allocate(OrtValue& value) { value.memory.assign(bytes_of(value) / 8 + 1, 0); }

template <class T, class U>
OrtStatus* find(const std::map<std::string, T>& values, const char* name, U* out) {
  const auto found = values.find(name);
  if (found == values.end()) return status("no such attribute");
  *out = found->second;
  return nullptr;
}

OrtApi api() {
  OrtApi api{};
  api.CreateStatus = [](int, const char* words) { return status(words); };
  api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) { return *out = &domain, status(nullptr); };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* to, const OrtCustomOp* op) {
    return to->operators.push_back(op), status(nullptr);
  };
  api.AddCustomOpDomain = [](OrtSessionOptions*, OrtCustomOpDomain*) { return status(nullptr); };
  api.GetTensorMutableData = [](OrtValue* from, void** out) { return *out = from->memory.data(), status(nullptr); };
  api.GetTensorTypeAndShape = [](const OrtValue* from, OrtTensorTypeAndShapeInfo** out) {
    *out = reinterpret_cast<OrtTensorTypeAndShapeInfo*>(const_cast<OrtValue*>(from));
    return status(nullptr);
  };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info, int* out) {
    return *out = described_by(info).type, status(nullptr);
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) {
    return *out = described_by(info).dims.size(), status(nullptr);
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) {
    return std::memcpy(out, described_by(info).dims.data(), count * sizeof(int64_t)), status(nullptr);
  };
  api.KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name, float* out) {
    return find(info->reals, name, out);
  };
  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out) {
    return find(info->integers, name, out);
  };
  api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t index, const OrtValue** out) {
    const bool there = index < context->inputs.size() && context->inputs[index].there;
    return *out = there ? &context->inputs[index] : nullptr, status(nullptr);
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* context, size_t, const int64_t* dims, size_t rank, OrtValue** out) {
    context->output.dims.assign(dims, dims + rank);
    allocate(context->output);
    return *out = &context->output, status(nullptr);
  };
  api.ReleaseStatus = [](OrtStatus* released) { delete released; };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo*) {};
  api.KernelContext_ParallelFor = [](const OrtKernelContext*, void (*body)(void*, size_t), size_t total, size_t,
                                     void* user) {
    std::vector<std::thread> others;
    for (size_t i = 1; i < total; ++i) others.emplace_back(body, user, i);
    body(user, 0);
    for (std::thread& other : others) other.join();
    return status(nullptr);
  };
  return api;
}

void say(const OrtValue& value) {
  std::cout << "tensor " << value.type;
  for (int64_t dim : value.dims) std::cout << ' ' << dim;
  std::cout << '\n';
  std::cout.write(reinterpret_cast<const char*>(value.memory.data()), std::streamsize(bytes_of(value)));
}

int end(OrtStatus* failed) {
  std::cout << failed->words << std::endl;
  return 0;
}

const OrtCustomOp* named(const std::string& name) {
  for (const OrtCustomOp* op : domain.operators)
    if (name == op->GetName(op)) return op;
  std::cerr << "there is no operator " << name << std::endl;
  std::exit(2);
}

void read(const std::string& line, OrtKernelInfo& info, OrtKernelContext& context) {
  std::istringstream words(line);
  std::string what, name;
  words >> what;
  if (what == "int") words >> name >> info.integers[name];
  else if (what == "real") words >> name >> info.reals[name];
  else if (what == "absent") context.inputs.emplace_back().there = false;
  else {
    OrtValue& tensor = context.inputs.emplace_back();
    words >> tensor.type;
    for (int64_t dim; words >> dim;) tensor.dims.push_back(dim);
    allocate(tensor);
    std::cin.read(reinterpret_cast<char*>(tensor.memory.data()), std::streamsize(bytes_of(tensor)));
  }
}

}  // namespace

int main() {
  const OrtApi functions = api();
  table = &functions;
  const OrtApiBase base{[](uint32_t) { return table; }, [] { return "1.32.0"; }};
  if (OrtStatus* failed = RegisterCustomOps(nullptr, &base)) return end(failed);
  std::string kernels, operator_name, line;
  std::getline(std::cin, kernels);
  std::getline(std::cin, operator_name);
  if (!llmos_use_kernels(kernels.c_str())) return end(status("these kernels cannot run here"));
  OrtKernelInfo info;
  OrtKernelContext context;
  while (std::getline(std::cin, line) && line != "run") read(line, info, context);
  const OrtCustomOp* op = named(operator_name);
  context.output.type = op->GetOutputType(op, 0);
  void* kernel = nullptr;
  if (OrtStatus* failed = op->CreateKernelV2(op, table, &info, &kernel)) return end(failed);
  if (OrtStatus* failed = op->KernelComputeV2(kernel, &context)) return end(failed);
  op->KernelDestroy(kernel);
  std::cout << "ok\n";
  say(context.output);
  for (const OrtValue& input : context.inputs)
    if (input.there) say(input);
}
