// Memory for large results on the CPU, used again. The first touch of fresh memory takes as long as the patches that go
// there: what a freed result leaves is kept for the next, marked so that the system takes it back when it needs it.
#pragma once

#include <cstddef>

namespace lesionaug {

constexpr size_t kLeastResult = size_t(8) << 20;  // bytes; smaller ones are better off with malloc

struct ResultBlock {
  void* memory;  // not initialised, from the start of a large page on
  size_t size;   // bytes, at least those asked for
};

// Null where the system has no such memory, or none left. To be given back, by any thread.
ResultBlock* take_result_block(size_t bytes);
void give_result_block(ResultBlock* block);

}  // namespace lesionaug
