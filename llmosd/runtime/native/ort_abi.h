// The part of ONNX Runtime's C ABI that these operators use.
//
// The wheels of ONNX Runtime ship no headers, so the few entries needed are declared here. The function table
// (`OrtApi`) and `OrtCustomOp` are append-only by ONNX Runtime's policy: an entry never moves once released, and
// everything below has been there since version 17 of the table (onnxruntime 1.17). `register.cpp` refuses versions
// outside the tested range.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

struct OrtApi {
  OrtStatus* (*CreateStatus)(int code, const char* message);
  void* unused_1[25];
  OrtStatus* (*CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const struct OrtCustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  void* unused_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  void* unused_52[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, int* out);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count);
  void* unused_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  void* unused_66[19];
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo* info, const char* name, float* out);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* out);
  void* unused_87[3];
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims, size_t count,
                                        OrtValue** out);
  void* unused_92[1];
  void (*ReleaseStatus)(OrtStatus* status);
  void* unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void* unused_100[174];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*body)(void* user, size_t index),
                                          size_t total, size_t num_batch, void* user);
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

}  // extern "C"

namespace llmos {

constexpr uint32_t kApiVersion = 17;

enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

#define LLMOS_SLOT(name, index) static_assert(offsetof(OrtApi, name) == (index) * sizeof(void*), #name " moved")
LLMOS_SLOT(CreateStatus, 0);
LLMOS_SLOT(CreateCustomOpDomain, 26);
LLMOS_SLOT(AddCustomOpDomain, 28);
LLMOS_SLOT(GetTensorMutableData, 51);
LLMOS_SLOT(GetTensorElementType, 60);
LLMOS_SLOT(GetTensorTypeAndShape, 65);
LLMOS_SLOT(KernelInfoGetAttribute_float, 85);
LLMOS_SLOT(KernelContext_GetInput, 90);
LLMOS_SLOT(ReleaseStatus, 93);
LLMOS_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
LLMOS_SLOT(KernelContext_ParallelFor, 274);
#undef LLMOS_SLOT
static_assert(sizeof(OrtCustomOp) == 208 && offsetof(OrtCustomOp, KernelComputeV2) == 144 &&
                  offsetof(OrtCustomOp, GetAliasMap) == 192,
              "OrtCustomOp's layout");

}  // namespace llmos
