// AMX's tile registers. They belong to the thread, which other kernels share: a kernel has them while a Tiles lives.
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

// As `ldtilecfg` reads it (Intel SDM vol. 1, 18.1): bytes of a row, and rows, of each register.
struct alignas(kCacheLine) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
  ~Tiles() { asm volatile("tilerelease" : : : "memory"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace LLMOS_ISA
}  // namespace llmos
