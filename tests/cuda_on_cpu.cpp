// The kernel files, unchanged, over the CPU stand-in for CUDA.
#include "cuda_on_cpu.h"

#include "../csrc/plan_cuda.cu"
#include "../csrc/resample_cuda.cu"
#include "../csrc/resample_tiled.cu"
