#include "parallel.h"

#include <condition_variable>
#include <thread>
#include <vector>

#ifdef __unix__
#include <pthread.h>
#endif

namespace lesionaug {
namespace {

// Starts threads until there are `count`; where there are no more to be had, those there are do the rest.
void start(int count, std::vector<std::thread>& threads, const std::function<void()>& run) {
  try {
    while (int(threads.size()) < count) threads.emplace_back(run);
  } catch (const std::exception&) {
  }
}

// Threads that wait for work. They are never ended: the end of the process finds them asleep.
class Team {
 public:
  // False where another caller has the team.
  bool run(int others, const std::function<void()>& work) {
    if (taken_.test_and_set(std::memory_order_acquire)) return false;
    int called;
    {
      const std::lock_guard<std::mutex> lock(state_);
      start(others, threads_, [this] { serve(); });
      work_ = &work;
      wanted_ = called = std::min(others, int(threads_.size()));
    }
    for (int k = 0; k < called; ++k) wake_.notify_one();
    work();
    {
      const std::lock_guard<std::mutex> lock(state_);
      wanted_ = 0;  // who has not come by now would find nothing left to do
    }
    // Who is still at work has its last piece: going to sleep for that takes longer than most of them.
    for (int turn = 0; turn < 500 && working_ > 0; ++turn) std::this_thread::yield();
    {
      std::unique_lock<std::mutex> lock(state_);
      done_.wait(lock, [this] { return working_ == 0; });
    }
    taken_.clear(std::memory_order_release);
    return true;
  }

 private:
  std::atomic_flag taken_ = ATOMIC_FLAG_INIT;
  std::mutex state_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  const std::function<void()>* work_ = nullptr;
  int wanted_ = 0;  // threads that may still come
  std::atomic<int> working_{0};

  void serve() {
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_, ++working_;
      const std::function<void()>& work = *work_;
      lock.unlock();
      work();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }
};

std::atomic<Team*> team;

Team& the_team() {
  if (Team* there = team) return *there;
  Team* const made = new Team;
  Team* none = nullptr;
  if (team.compare_exchange_strong(none, made)) {
#ifdef __unix__
    static const int registered = pthread_atfork(nullptr, nullptr, [] { team = nullptr; });
    (void)registered;
#endif
    return *made;
  }
  delete made;
  return *none;
}

}  // namespace

void with_threads(int others, const std::function<void()>& work) {
  if (others <= 0) return work();
  if (the_team().run(others, work)) return;
  std::vector<std::thread> threads;
  start(others, threads, work);
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace lesionaug
