// Preloaded (LD_PRELOAD): the process sees a processor with AVX2 and nothing beyond it, whatever it runs on.
//
// Linux on x86-64, where the processor can be told that `cpuid` is to fault (arch_prctl(2), ARCH_SET_CPUID; threads
// inherit it, programs started from here load this library again). The handler executes it and clears what lies beyond
// AVX2 and FMA; leaves and bits as in the Intel SDM, vol. 2, CPUID.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kSetCpuid = 0x1012 };  // asm/prctl.h

#define BIT(n) (UINT32_C(1) << (n))

static void answer(int number, siginfo_t* info, void* context) {
  (void)number, (void)info;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* at = (const uint8_t*)registers[REG_RIP];
  if (at[0] != 0x0f || at[1] != 0xa2) {  // not cpuid: it faults again, without us
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  uint32_t a, b, c, d;
  syscall(SYS_arch_prctl, kSetCpuid, 1);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
  syscall(SYS_arch_prctl, kSetCpuid, 0);
  if (leaf == 7 && subleaf == 0) {
    // AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    // AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
    // AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX bf16, tile, int8
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(23) | BIT(22) | BIT(24) | BIT(25));
  } else if (leaf == 7 && subleaf == 1) {
    // AVX-VNNI, AVX-512 BF16, AMX fp16, AVX-IFMA
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
    // AVX-VNNI-INT8, AVX-NE-CONVERT, AMX complex, AVX-VNNI-INT16, AVX10
    d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
  } else if (leaf == 13 && subleaf == 0) {
    // the operating system's part: mask and 512-bit registers, tiles
    a &= ~(BIT(5) | BIT(6) | BIT(7) | BIT(17) | BIT(18));
  }
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, NULL);
  if (syscall(SYS_arch_prctl, kSetCpuid, 0)) {
    fputs("cpuid cannot be made to fault here, so AVX-512 cannot be hidden\n", stderr);
    _exit(2);
  }
}
