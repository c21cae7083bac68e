#include "kernels/base/stream.h"

#include <immintrin.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>

namespace weft {

void* Worker::AllocBytes(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  size_t skipped = 0;
  for (Block& block : blocks_) {
    // A block too small for what is left of this request is passed over as a whole.
    if (used_ < skipped + block.size) {
      const size_t offset = used_ > skipped ? used_ - skipped : 0;
      if (offset + bytes <= block.size) {
        used_ = skipped + offset + bytes;
        const auto base = (reinterpret_cast<uintptr_t>(block.data.get()) + 63) / 64 * 64;
        return reinterpret_cast<void*>(base + offset);
      }
      used_ = skipped + block.size;
    }
    skipped += block.size;
  }
  const size_t size = std::max<size_t>(bytes, size_t{1} << 20);
  blocks_.push_back({std::unique_ptr<std::byte[]>(new std::byte[size + 64]), size});
  used_ = skipped + bytes;
  const auto base = (reinterpret_cast<uintptr_t>(blocks_.back().data.get()) + 63) / 64 * 64;
  return reinterpret_cast<void*>(base);
}

struct CpuStream::Pool {
  // One job at a time. Threads spin briefly for the next job, since ops follow each other within
  // microseconds, and then sleep. A thread that comes too late for a job is not waited for: it may
  // read the job's fields only if it still finds it open after it has counted itself in.
  alignas(64) std::atomic<uint32_t> job{0};  // its number; changes when a new one is posted
  alignas(64) std::atomic<bool> open{false};
  alignas(64) std::atomic<int32_t> inside{0};  // helpers that may be reading the fields below
  // A thread takes the items of its own share first, which follow each other: memory is read ahead,
  // and the next op finds the same rows in the same cache.
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares;
  std::atomic<bool> stop{false};
  Item item = nullptr;
  void* body = nullptr;
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<std::thread> threads;

  void Work(size_t thread, Worker& worker) {
    for (size_t t = 0; t < shares.size(); ++t) {
      Share& share = shares[(thread + t) % shares.size()];
      for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
        try {
          worker.Reset();
          item(body, i, worker);
        } catch (...) {
          const std::lock_guard lock(error_mutex);
          if (!error) error = std::current_exception();
        }
      }
    }
  }
};

namespace {

constexpr int kSpins = 4000;  // about 50 us

int UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

// Products point the stack pointer at data for a while: a handler would write there.
void TakeNoSignals() {
  sigset_t all_but_faults;
  sigfillset(&all_but_faults);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT})
    sigdelset(&all_but_faults, fault);
  pthread_sigmask(SIG_BLOCK, &all_but_faults, nullptr);
}

}  // namespace

CpuStream::CpuStream(int threads)
    : workers_(static_cast<size_t>(threads > 0 ? threads : UsableCores())) {
  if (workers_.size() == 1) return;
  pool_ = std::make_unique<Pool>();
  pool_->shares = std::vector<Pool::Share>(workers_.size());
  for (size_t t = 1; t < workers_.size(); ++t) {
    pool_->threads.emplace_back([pool = pool_.get(), t, worker = &workers_[t]] {
      TakeNoSignals();
      uint32_t seen = 0;
      while (true) {
        for (int spin = 0; pool->job.load(std::memory_order_acquire) == seen; ++spin) {
          if (spin < kSpins) {
            _mm_pause();
          } else {
            pool->job.wait(seen, std::memory_order_acquire);
          }
        }
        seen = pool->job.load(std::memory_order_acquire);
        if (pool->stop) return;
        pool->inside.fetch_add(1);
        if (pool->open.load()) pool->Work(t, *worker);
        pool->inside.fetch_sub(1, std::memory_order_release);
      }
    });
  }
}

CpuStream::~CpuStream() {
  if (!pool_) return;
  pool_->stop = true;
  pool_->job.fetch_add(1, std::memory_order_release);
  pool_->job.notify_all();
  for (std::thread& thread : pool_->threads) thread.join();
}

void CpuStream::RunItems(int64_t n, Item item, void* body) {
  if (n <= 0) return;
  if (!pool_ || n == 1) {
    for (int64_t i = 0; i < n; ++i) {
      workers_[0].Reset();
      item(body, i, workers_[0]);
    }
    return;
  }
  Pool& pool = *pool_;
  pool.item = item;
  pool.body = body;
  pool.error = nullptr;
  const auto threads = static_cast<int64_t>(pool.shares.size());
  for (int64_t t = 0; t < threads; ++t) {
    pool.shares[t].next.store(n * t / threads, std::memory_order_relaxed);
    pool.shares[t].end = n * (t + 1) / threads;
  }
  pool.open.store(true, std::memory_order_release);
  pool.job.fetch_add(1, std::memory_order_release);
  pool.job.notify_all();
  pool.Work(0, workers_[0]);
  pool.open.store(false);
  for (int spin = 0; pool.inside.load() != 0; ++spin) {
    spin < kSpins ? _mm_pause() : void(sched_yield());  // a helper may have lost its core
  }
  if (pool.error) std::rethrow_exception(pool.error);
}

}  // namespace weft
