// A fixed team of threads that runs one function at a time, and a barrier for its members.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace mobillama {

// Waiting spins for some tens of microseconds, then sleeps: a layer's barriers are met within that time on a
// free machine, and on a busy one a spinning thread would take the processor from the one it waits for.
class Barrier {
public:
    explicit Barrier(unsigned members) : members_(members) {}
    void wait();

private:
    const unsigned members_;
    alignas(64) std::atomic<unsigned> arrived_{0};
    alignas(64) std::atomic<unsigned> generation_{0};
};

class ThreadPool {
public:
    // The caller of run() is member 0; the others are started here. With `pin`, member i stays on the i-th
    // processor that the process may use while it works.
    ThreadPool(unsigned threads, bool pin);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    unsigned size() const { return unsigned(workers_.size()) + 1; }

    // Call task(member) on every member and return when all are done. Not reentrant, one caller at a time.
    void run(const std::function<void(unsigned)>& task);

    // For use inside a task, by every member.
    void barrier() { barrier_.wait(); }

private:
    void work(unsigned member);

    const bool pin_;
    Barrier barrier_;
    const std::function<void(unsigned)>* task_ = nullptr;
    alignas(64) std::atomic<unsigned> round_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace mobillama
