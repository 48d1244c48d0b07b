// The library's C border: registration with a session, the choice of instruction set, and facts about the build.
#include <cstdio>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "export.h"
#include "kernels/kernels.h"
#include "operator.h"

namespace llmos {

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
#elif defined(__aarch64__)
namespace neon_dot {
extern const Kernels table;
}
namespace neon {
extern const Kernels table;
}
#endif
namespace portable {
extern const Kernels table;
}

namespace {

// Release 1.x of ONNX Runtime from the first that was tested. Later ones keep the ABI by policy; the self-test decides.
constexpr int kMajor = 1, kFirstMinor = 20;

#if defined(__x86_64__)
// AVX2, FMA and F16C, and an operating system that saves their registers (Intel SDM vol. 1, 14.3 and 14.7.1).
// Not __builtin_cpu_supports: what stands behind it in Zig's compiler finds no feature on any processor.
bool has_avx2() {
  unsigned a, b, c, d, low, high;
  constexpr unsigned kBasic = bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C, kSavedXmmYmm = 6;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kBasic) != kBasic) return false;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kSavedXmmYmm) != kSavedXmmYmm) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}
#endif

const Kernels& choose() {
#if defined(__x86_64__)
  if (has_avx2()) return avx2::table;
#elif defined(__APPLE__) && defined(__aarch64__)
  return neon_dot::table;  // every such processor has the extension
#elif defined(__aarch64__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? neon_dot::table : neon::table;
#endif
  return portable::table;
}

const Kernels* chosen = &choose();

void add_operators(OrtSessionOptions* options) {
  static OrtCustomOpDomain* domain = [] {
    OrtCustomOpDomain* created = nullptr;
    check(api->CreateCustomOpDomain("llmos", &created));
    for (const OrtCustomOp* op : {paged_attention(), quantised_linear(), linear(), swiglu()})
      check(api->CustomOpDomain_Add(created, op));
    return created;
  }();
  check(api->AddCustomOpDomain(options, domain));
}

}  // namespace

const Kernels& kernels() { return *chosen; }

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

LLMOS_EXPORT const char* llmos_instruction_set() { return llmos::kernels().name; }

// For tests: use the named kernels in every session of this process; 0 if this processor cannot run them.
LLMOS_EXPORT int llmos_use_kernels(const char* name) {
  using namespace llmos;
  for (const Kernels* table : {&choose(), &portable::table})
    if (std::string(table->name) == name) return chosen = table, 1;
  return 0;
}
