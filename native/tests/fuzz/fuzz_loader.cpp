// One execution: take the bytes for a device file, load it as far as it goes, and evaluate a token if it loads.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "forward.h"
#include "kernels.h"

using namespace mobillama;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto file = gguf::parse({reinterpret_cast<const std::byte*>(data), size});
    if (!file) return 0;
    const auto config = read_config(*file);
    if (!config) return 0;
    static ThreadPool pool(1, false);
    const Shards shards(*config, pool.size());
    const auto weights = load_weights(*file, *config, shards, scalar_kernels(), pool, nullptr);
    if (!weights) return 0;
    auto scratch = Scratch::allocate(*config, shards);
    if (!scratch) return 0;
    KvCache cache(*config, CacheType::q8_0);
    if (!cache.reserve(1)) return 0;
    const std::int32_t token = 0;
    std::vector<float> logits(config->vocab_size);
    Batch batch;
    batch.cache = &cache;
    batch.count = 1;
    batch.tokens = &token;
    batch.wanted = Logits::last;
    batch.logits = logits.data();
    forward({*config, *weights, shards, scalar_kernels(), *scratch, pool}, batch);
    return 0;
}
