#include "result_memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(MADV_FREE) && defined(MADV_HUGEPAGE)
#include <atomic>
#include <cstdint>
#include <new>

namespace lesionaug {
namespace {

constexpr size_t kLargePage = size_t(2) << 20;

// A loop that replaces its result holds the old one while the new one is made, so two. No lock: a forked process must
// not inherit one that is held.
std::atomic<ResultBlock*> kept[2];

ResultBlock* map_block(size_t size) {
  const size_t mapped = size + kLargePage;  // the system begins where it likes
  void* found = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(found);
  char* const memory = begin + (kLargePage - reinterpret_cast<uintptr_t>(begin) % kLargePage) % kLargePage;
  if (memory != begin) munmap(begin, size_t(memory - begin));
  if (memory != begin + kLargePage) munmap(memory + size, size_t(begin + kLargePage - memory));
  (void)madvise(memory, size, MADV_HUGEPAGE);  // a refusal changes nothing but the time
  ResultBlock* block = new (std::nothrow) ResultBlock{memory, size};
  if (!block) munmap(memory, size);
  return block;
}

void unmap_block(ResultBlock* block) {
  if (!block) return;
  munmap(block->memory, block->size);
  delete block;
}

// Whether there was a place for it.
bool keep(ResultBlock* block) {
  for (std::atomic<ResultBlock*>& place : kept) {
    ResultBlock* none = nullptr;
    if (place.compare_exchange_strong(none, block)) return true;
  }
  return false;
}

}  // namespace

ResultBlock* take_result_block(size_t bytes) {
  const size_t size = (bytes + kLargePage - 1) / kLargePage * kLargePage;
  for (std::atomic<ResultBlock*>& place : kept) {
    ResultBlock* block = place.exchange(nullptr);
    if (!block) continue;
    if (block->size >= size && block->size <= 2 * size) return block;
    if (!keep(block)) unmap_block(block);
  }
  return map_block(size);
}

void give_result_block(ResultBlock* block) {
  if (madvise(block->memory, block->size, MADV_FREE) != 0) return unmap_block(block);
  if (!keep(block)) unmap_block(kept[0].exchange(block));
}

}  // namespace lesionaug

#else

namespace lesionaug {

ResultBlock* take_result_block(size_t) { return nullptr; }
void give_result_block(ResultBlock*) {}

}  // namespace lesionaug
#endif
