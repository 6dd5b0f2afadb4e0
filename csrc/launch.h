// Kernel launches: every one takes a stream and is checked at once. No kernel file launches in any other way.
#pragma once

#ifndef LESIONAUG_CUDA_ON_CPU  // tests/cuda_on_cpu.h stands in for all of this where there is no GPU
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lesionaug {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA error in ") + what + ": " + cudaGetErrorName(error) + ", " +
                             cudaGetErrorString(error));
  }
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
            Arguments... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": more than 2^31 - 1 blocks in one call");
  kernel<<<unsigned(blocks), unsigned(threads), 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
}

}  // namespace lesionaug
#endif
