// Implements thread_pool.h with one job at a time: a caller that finds the pool busy (two Python threads) works alone.
#include "thread_pool.h"

#include <pthread.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace fastdc {
namespace {

int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

std::atomic<int> configured_threads{0};  // 0: not set

// 0: not counted yet. Not a static variable of a function: another thread may hold its hidden lock at a fork, and the
// child would wait for it.
std::atomic<int> counted_cpus{0};

struct Job {
  RangeFunction function = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  int64_t piece = 0;
  std::atomic<int64_t> next{0};

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
      if (begin >= count) return;
      function(context, begin, std::min(count, begin + piece));
    }
  }
};

class Pool {
 public:
  // Has fewer threads if the system grants no more: the results are the same, but take longer.
  explicit Pool(int workers) : owner_(getpid()), wanted_(workers) {
    threads_.reserve(static_cast<size_t>(workers));
    try {
      while (static_cast<int>(threads_.size()) < workers) threads_.emplace_back([this] { run(); });
    } catch (const std::system_error&) {
    }
  }

  // Threads do not survive a fork: a pool made by another process is useless here and is abandoned, not joined.
  bool belongs_here(int workers) const { return made_by_this_process() && wanted_ == workers; }
  bool made_by_this_process() const { return owner_ == getpid(); }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // Wakes no more threads than there are pieces, and does not wait for threads that have not started when the caller
  // has run out of pieces: on a busy machine, it would only wait for the operating system.
  void execute(Job& job) {
    const int64_t pieces = (job.count + job.piece - 1) / job.piece;
    const int helpers = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(threads_.size()), pieces - 1));
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      invited_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    invited_ = 0;
    done_.wait(lock, [this] { return running_ == 0; });
    job_ = nullptr;
  }

 private:
  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || invited_ > 0; });
      if (stopping_) return;
      --invited_;
      ++running_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_;
  const int wanted_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  int invited_ = 0;  // threads that may still join the job
  int running_ = 0;  // threads that work on it, without the caller
  bool stopping_ = false;
};

// Leaked on purpose at exit (joining threads from a static destructor deadlocks in some embedders).
std::mutex* pool_mutex = new std::mutex;
Pool* pool = nullptr;

// A fork may happen while another thread holds the mutex; the child starts from a fresh, unlocked one.
void after_fork_in_child() {
  pool_mutex = new std::mutex;
  pool = nullptr;
}
const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork_in_child);

}  // namespace

int num_threads() {
  const int threads = configured_threads.load(std::memory_order_relaxed);
  if (threads > 0) return threads;
  int cpus = counted_cpus.load(std::memory_order_relaxed);
  if (cpus == 0) counted_cpus.store(cpus = usable_cpus(), std::memory_order_relaxed);
  return cpus;
}

void set_num_threads(int threads) { configured_threads.store(threads, std::memory_order_relaxed); }

void parallel_for(int64_t count, int64_t min_piece, RangeFunction function, void* context) {
  if (count <= 0) return;
  const int threads = num_threads();
  const int64_t piece = std::max<int64_t>(std::max<int64_t>(1, min_piece), count / (4 * threads));
  std::unique_lock<std::mutex> lock(*pool_mutex, std::defer_lock);
  if (threads == 1 || piece >= count || !lock.try_lock()) {
    function(context, 0, count);
    return;
  }
  if (pool == nullptr || !pool->belongs_here(threads - 1)) {
    if (pool != nullptr && pool->made_by_this_process()) delete pool;
    pool = nullptr;
    pool = new Pool(threads - 1);
  }
  Job job;
  job.function = function;
  job.context = context;
  job.count = count;
  job.piece = piece;
  pool->execute(job);
}

}  // namespace fastdc
