// Which of the compiled sets of kernels this processor can run, and which one is in use.
//
// The build names the sets it compiled, best first, in LLMOS_SETS: LLMOS_SET(avx2) LLMOS_SET(portable), for one.
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "export.h"
#include "kernels/kernels.h"

namespace llmos {

#define LLMOS_SET(isa)         \
  namespace isa {              \
  extern const Kernels table;  \
  }
LLMOS_SETS
#undef LLMOS_SET

namespace {

// Whether this processor and its operating system can run a set: a function of the set's name.
namespace runs {

#if defined(__x86_64__)
// Features by cpuid, and an operating system that saves the registers (Intel SDM vol. 1, 14.3, 14.7.1 and 15.2-15.4).
// Not __builtin_cpu_supports: what stands behind it in Zig's compiler finds no feature on any processor.
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit Leaf(unsigned leaf, unsigned subleaf = 0) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool all(unsigned word, unsigned bits) { return (word & bits) == bits; }

bool saved(unsigned registers) {
  if (!all(Leaf(1).c, bit_OSXSAVE)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return all(low, registers);
}

bool avx2() {
  constexpr unsigned kXmmYmm = 6;
  return all(Leaf(1).c, bit_FMA | bit_AVX | bit_F16C) && all(Leaf(7).b, bit_AVX2) && saved(kXmmYmm);
}

[[maybe_unused]] bool avxvnni() {
  constexpr unsigned kAvxVnni = 1u << 4;  // not every compiler's cpuid.h names it
  return avx2() && all(Leaf(7, 1).a, kAvxVnni);
}

[[maybe_unused]] bool avx512vnni() {
  constexpr unsigned kVnni = 1u << 11, kXmmYmmMasksZmm = 0xe6;
  const Leaf features(7);
  return avx2() && all(features.b, bit_AVX512F | bit_AVX512BW | bit_AVX512VL) && all(features.c, kVnni) &&
         saved(kXmmYmmMasksZmm);
}

// A process asks once for the 8 KiB of tiles that each of its threads then has saved.
bool tiles_granted() {
#if defined(__linux__)
  constexpr long kRequestFeature = 0x1023, kTileData = 18;  // asm/prctl.h of Linux 5.16
  return syscall(SYS_arch_prctl, kRequestFeature, kTileData) == 0;
#else
  return false;
#endif
}

[[maybe_unused]] bool amx() {
  constexpr unsigned kBf16 = 1u << 22, kFp16 = 1u << 23, kTile = 1u << 24, kInt8 = 1u << 25, kTileConfigTileData = 3u << 17;
  return avx512vnni() && all(Leaf(7).b, bit_AVX512DQ) && all(Leaf(7).d, kBf16 | kFp16 | kTile | kInt8) &&
         saved(kTileConfigTileData) && tiles_granted();
}
#elif defined(__aarch64__)
#if defined(__APPLE__)
[[maybe_unused]] bool neon_dot() { return true; }  // every such processor has the extension
#else
[[maybe_unused]] bool neon_dot() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
#endif
bool neon() { return true; }
#endif
bool portable() { return true; }

}  // namespace runs

struct Set {
  const Kernels* table;
  bool (*runs)();
};

#define LLMOS_SET(isa) {&isa::table, runs::isa},
const Set sets[] = {LLMOS_SETS};
#undef LLMOS_SET

const Kernels* best() {
  for (const Set& set : sets)
    if (set.runs()) return set.table;
  return &portable::table;
}

const Kernels* chosen = best();

}  // namespace

const Kernels& kernels() { return *chosen; }

}  // namespace llmos

// The names of all sets that this processor can run, best first, separated by spaces.
LLMOS_EXPORT const char* llmos_instruction_sets() {
  using namespace llmos;
  static const std::string names = [] {
    std::string runnable;
    for (const Set& set : sets)
      if (set.runs()) runnable += (runnable.empty() ? "" : " ") + std::string(set.table->name);
    return runnable;
  }();
  return names.c_str();
}

LLMOS_EXPORT const char* llmos_instruction_set() { return llmos::kernels().name; }

// Use the named kernels in every session of this process from now on; 0 if this processor cannot run them.
LLMOS_EXPORT int llmos_use_kernels(const char* name) {
  using namespace llmos;
  for (const Set& set : sets)
    if (set.table->name == std::string(name) && set.runs()) return chosen = set.table, 1;
  return 0;
}
