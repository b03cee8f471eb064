// A loaded model: file, weights, kernels and threads. Sessions share it; one forward pass runs at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "config.h"
#include "forward.h"
#include "gguf.h"
#include "kernels.h"
#include "kv_cache.h"
#include "platform.h"
#include "result.h"
#include "scratch.h"
#include "shards.h"
#include "thread_pool.h"
#include "weights.h"

namespace mobillama {

struct ModelOptions {
    unsigned threads = 2;
    CacheType cache_type = CacheType::q8_0;
    std::uint32_t context_length = 0;  // 0: what the file says
    std::string isa = "auto";
    bool pin = false;  // keep each thread on one processor
};

struct MemoryUse {
    std::size_t weights_bytes;
    std::size_t full_cache_bytes;  // of one session whose context is full
    std::size_t scratch_bytes;
};

class Model {
public:
    static Result<std::shared_ptr<Model>> open(const std::string& path, const ModelOptions& options);

    const ModelConfig& config() const { return config_; }
    const gguf::File& file() const { return file_; }
    const char* isa() const { return kernels_->name; }
    unsigned threads() const { return pool_->size(); }
    CacheType cache_type() const { return cache_type_; }
    MemoryUse memory() const;

    // What tells this model from others: a hash of the metadata, and of samples of every tensor. Hashing all
    // of a file would take longer than the evaluation that a saved prefix saves.
    std::uint64_t identity() const;

    // As mobillama::forward(); safe to call from several threads.
    void forward(const Batch& batch);

private:
    Model() = default;

    MappedFile mapping_;
    gguf::File file_;
    ModelConfig config_;
    const Kernels* kernels_ = nullptr;
    CacheType cache_type_ = CacheType::f16;
    std::unique_ptr<Shards> shards_;
    std::unique_ptr<ThreadPool> pool_;
    Weights weights_;
    Scratch scratch_;
    std::mutex forward_mutex_;
};

}  // namespace mobillama
