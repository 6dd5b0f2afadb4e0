// The vector kernels for AVX2 with FMA; CMakeLists.txt sets the flags of this file.
#ifdef __AVX2__
#define TILE_ISA avx2
#include "tile_adjoint.h"
#else
#include "tile.h"
#endif

namespace lesionaug {

const TileKernels* tile_kernels_avx2() {
#ifdef __AVX2__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels<8>("avx2");
#endif
  return nullptr;
}

}  // namespace lesionaug
