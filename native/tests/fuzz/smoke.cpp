// Runs the fuzz target on deterministic mutations of real files: fuzz_smoke EXECUTIONS
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "tiny_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

// Most damage goes to the header and the tensor table: behind them any bytes are weights.
constexpr std::size_t kTables = 4096;

void mutate(std::vector<std::byte>& bytes, std::mt19937& random) {
    const std::size_t reach = std::min(bytes.size(), random() % 8 == 0 ? bytes.size() : kTables);
    const std::size_t at = random() % reach;
    switch (random() % 5) {
        case 0: bytes[at] ^= std::byte(1u << random() % 8); break;
        case 1: bytes[at] = std::byte(random() & 255); break;
        case 2: bytes.resize(at); break;
        case 3: {  // an extreme number where a count, length or offset may be
            const std::uint64_t numbers[] = {0, 1, 0x7fffffff, 0xffffffff, ~std::uint64_t(0), std::uint64_t(1) << 63};
            const std::uint64_t number = numbers[random() % 6];
            std::memcpy(bytes.data() + at, &number, std::min<std::size_t>(random() % 2 ? 4 : 8, bytes.size() - at));
            break;
        }
        case 4: {  // a piece from elsewhere
            const std::size_t from = random() % bytes.size();
            const std::size_t count = std::min<std::size_t>({random() % 64, bytes.size() - at, bytes.size() - from});
            std::memmove(bytes.data() + at, bytes.data() + from, count);
            break;
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const long executions = argc > 1 ? std::atol(argv[1]) : 20000;
    const auto seeds = tiny::samples();
    std::mt19937 random(0);
    for (long i = 0; i < executions; ++i) {
        std::vector<std::byte> bytes = seeds[std::size_t(i) % seeds.size()];
        for (unsigned count = 1 + random() % 4; count > 0 && !bytes.empty(); --count) mutate(bytes, random);
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    }
    std::printf("%ld executions\n", executions);
    return 0;
}
