#include "thread_pool.h"

#include <optional>

#include "platform.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace mobillama {
namespace {

constexpr int kSpins = 2000;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("isb");  // waits for about as long as x86's pause; yield is a no-op on most cores
#endif
}

// Returns once `value` is no longer `old`.
void wait_for_change(const std::atomic<unsigned>& value, unsigned old) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (value.load(std::memory_order_acquire) != old) return;
        relax();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

void Barrier::wait() {
    if (members_ == 1) return;
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        generation_.notify_all();
    } else {
        wait_for_change(generation_, generation);
    }
}

ThreadPool::ThreadPool(unsigned threads, bool pin) : pin_(pin), barrier_(threads) {
    workers_.reserve(threads - 1);
    for (unsigned member = 1; member < threads; ++member) {
        workers_.emplace_back([this, member] { work(member); });
    }
}

ThreadPool::~ThreadPool() {
    stop_.store(true, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(unsigned)>& task) {
    std::optional<ScopedAffinity> affinity;
    if (pin_) affinity.emplace(0);
    task_ = &task;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    task(0);
    barrier_.wait();
}

void ThreadPool::work(unsigned member) {
    std::optional<ScopedAffinity> affinity;
    if (pin_) affinity.emplace(member);
    unsigned seen = 0;
    while (true) {
        wait_for_change(round_, seen);
        ++seen;
        if (stop_.load(std::memory_order_relaxed)) return;
        (*task_)(member);
        barrier_.wait();
    }
}

}  // namespace mobillama
