// The vector kernels for AVX-512; CMakeLists.txt sets the flags of this file.
#ifdef __AVX512F__
#define TILE_ISA avx512
#include "tile_adjoint.h"
#else
#include "tile.h"
#endif

namespace lesionaug {

const TileKernels* tile_kernels_avx512() {
#ifdef __AVX512F__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::kernels<16>("avx512");
#endif
  return nullptr;
}

}  // namespace lesionaug
