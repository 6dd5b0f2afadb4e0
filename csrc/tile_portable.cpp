// The vector kernels for any processor, in vectors of four floats: SSE2's or NEON's; CMakeLists.txt sets the flags of
// this file.
#define TILE_ISA portable
#include "tile_adjoint.h"

namespace lesionaug {

const TileKernels* tile_kernels_portable() { return portable::kernels<4>("portable"); }

}  // namespace lesionaug
