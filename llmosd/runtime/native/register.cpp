// The library's C border: registration with a session, and facts about the build.
#include <cstdio>

#include "export.h"
#include "operator.h"

namespace llmos {
namespace {

// Release 1.x of ONNX Runtime from the first that was tested. Later ones keep the ABI by policy; the self-test decides.
constexpr int kMajor = 1, kFirstMinor = 20;

void add_operators(OrtSessionOptions* options) {
  static OrtCustomOpDomain* domain = [] {
    OrtCustomOpDomain* created = nullptr;
    check(api->CreateCustomOpDomain("llmos", &created));
    for (const OrtCustomOp* op : {paged_attention(), quantised_linear(), linear(), swiglu(), draw_operator()})
      check(api->CustomOpDomain_Add(created, op));
    return created;
  }();
  check(api->AddCustomOpDomain(options, domain));
}

}  // namespace

}  // namespace llmos

LLMOS_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace llmos;
  api = base->GetApi(kApiVersion);
  int major = 0, minor = 0;
  const char* version = base->GetVersionString();
  if (!api) return nullptr;  // nothing to report an error with; the session will not find the operators
  if (std::sscanf(version, "%d.%d", &major, &minor) != 2 || major != kMajor || minor < kFirstMinor)
    return failure("llmos", (std::string("built for onnxruntime >= 1.20, < 2, not ") + version).c_str());
  return guarded("llmos", [&] { add_operators(options); });
}

LLMOS_EXPORT const char* llmos_source_hash() { return LLMOS_SOURCE_HASH; }

LLMOS_EXPORT const char* llmos_compiler() { return __VERSION__; }
