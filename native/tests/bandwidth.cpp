// Streaming read bandwidth of this machine, to be quoted beside every timing: bandwidth [THREADS]
// Prints one JSON object: GB/s out of memory (256 MB a thread) and out of the last-level cache (9 MB a thread,
// a thread's part of the 0.5B model's FFN).
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "platform.h"
#include "thread_pool.h"

namespace {

using Clock = std::chrono::steady_clock;

// Eight independent sums, so that loads and not additions are the limit.
std::uint64_t read_all(const std::uint64_t* words, std::size_t count) {
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i + 64 <= count; i += 64) {
        for (std::size_t line = 0; line < 8; ++line) {
            __builtin_prefetch(words + i + 2560 + line * 8, 0, 2);
            for (std::size_t j = 0; j < 8; ++j) sums[j] += words[i + line * 8 + j];
        }
    }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

double measure(mobillama::ThreadPool& pool, std::size_t bytes_per_thread, double seconds) {
    std::vector<mobillama::PageBuffer> buffers;
    for (unsigned i = 0; i < pool.size(); ++i) {
        auto buffer = mobillama::PageBuffer::allocate(bytes_per_thread);
        if (!buffer) std::abort();
        for (std::size_t at = 0; at < bytes_per_thread; ++at) buffer->data()[at] = std::byte(at * 31);
        buffers.push_back(std::move(*buffer));
    }
    volatile std::uint64_t sink = 0;
    double best = 0.0;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    while (Clock::now() < end) {
        const auto begin = Clock::now();
        pool.run([&](unsigned member) {
            sink = sink + read_all(reinterpret_cast<const std::uint64_t*>(buffers[member].data()), bytes_per_thread / 8);
        });
        const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
        best = std::max(best, double(bytes_per_thread) * pool.size() / elapsed * 1e-9);
    }
    return best;
}

}  // namespace

int main(int argc, char** argv) {
    mobillama::ThreadPool pool(argc > 1 ? unsigned(std::atoi(argv[1])) : 2, false);
    const double memory = measure(pool, std::size_t(256) << 20, 0.5);
    const double cache = measure(pool, std::size_t(9) << 20, 0.3);
    std::printf("{\"threads\": %u, \"memory_gb_s\": %.1f, \"last_level_cache_gb_s\": %.1f}\n", pool.size(), memory, cache);
    return 0;
}
