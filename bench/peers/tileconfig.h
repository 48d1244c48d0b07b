// For building llama.cpp where its matrix-tile path (AMX) is compiled by gcc 12: that compiler's _tile_loadconfig names
// 8 of the 64 bytes that the instruction reads, so the other stores may come too late, and the program dies of it.
#if defined(__x86_64__) && defined(__AMX_TILE__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(config)))
#endif
