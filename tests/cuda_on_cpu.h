// Runs CUDA kernels' own source on the CPU, for machines without a GPU: test only, one block after the other.
//
// Every thread of a block is a fiber with its own stack. A barrier is real: a fiber that reaches __syncthreads() waits
// until all the others have, and a block in which some threads end while others wait stops the program.
#pragma once

#define LESIONAUG_CUDA_ON_CPU
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace lesionaug {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool finished = false;
};

constexpr size_t kStack = 64 * 1024;
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* current = nullptr;
inline std::function<void()> body;

inline void enter() {
  body();
  current->finished = true;
  swapcontext(&current->context, &scheduler);
}

}  // namespace emulation

inline Dim3 blockIdx, blockDim, threadIdx, gridDim;

inline void __syncthreads() { swapcontext(&emulation::current->context, &emulation::scheduler); }

template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, void*,
            Arguments... arguments) {
  using namespace emulation;
  static std::mutex one_launch;  // shared memory is static here
  const std::lock_guard<std::mutex> lock(one_launch);
  if (fibers.size() < size_t(threads)) {
    fibers.resize(threads);
    for (Fiber& fiber : fibers)
      if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
  }
  body = [&] { kernel(arguments...); };
  gridDim.x = unsigned(blocks), blockDim.x = unsigned(threads);
  for (int64_t block = 0; block < blocks; ++block) {
    blockIdx.x = unsigned(block);
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[t];
      fiber.finished = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
    // One round runs every fiber to its next barrier or its end: the last thread first, so that what thread 0 prepares
    // for the others is missed where a barrier is.
    for (int finished = 0; finished < threads;) {
      int ended = 0, waiting = 0;
      for (int t = threads - 1; t >= 0; --t) {
        if (fibers[t].finished) continue;
        threadIdx.x = unsigned(t);
        current = &fibers[t];
        swapcontext(&scheduler, &fibers[t].context);
        ++(fibers[t].finished ? ended : waiting);
      }
      finished += ended;
      if (waiting && finished) {
        std::fprintf(stderr, "%s: block %lld: %d threads wait at a barrier that %d others never reach\n", name,
                     static_cast<long long>(block), waiting, finished);
        std::abort();
      }
    }
  }
}

}  // namespace lesionaug
