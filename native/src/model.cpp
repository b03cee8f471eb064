#include "model.h"

#include <algorithm>

#include "hash.h"
#include "isa.h"

namespace mobillama {
namespace {

constexpr unsigned kMaxThreads = 256;

}  // namespace

Result<std::shared_ptr<Model>> Model::open(const std::string& path, const ModelOptions& options) {
    if (options.threads < 1 || options.threads > kMaxThreads) {
        return Error{"threads is " + std::to_string(options.threads) + "; it must lie between 1 and " +
                     std::to_string(kMaxThreads)};
    }
    std::shared_ptr<Model> model(new Model());
    model->cache_type_ = options.cache_type;
    TRY_ASSIGN(model->kernels_, choose_kernels(options.isa));
    TRY_ASSIGN(model->mapping_, MappedFile::open(path));
    const auto in_file = [&path](const Error& error) { return Error{path + ": " + error.message}; };

    auto file = gguf::parse(model->mapping_.bytes());
    if (!file) return in_file(file.error());
    model->file_ = std::move(*file);
    auto config = read_config(model->file_);
    if (!config) return in_file(config.error());
    model->config_ = std::move(*config);
    if (options.context_length > model->config_.context_length) {
        return Error{"context is " + std::to_string(options.context_length) + "; " + path + " was made for at most " +
                     std::to_string(model->config_.context_length)};
    }
    if (options.context_length != 0) model->config_.context_length = options.context_length;

    model->shards_ = std::make_unique<Shards>(model->config_, options.threads);
    model->pool_ = std::make_unique<ThreadPool>(options.threads, options.pin);
    auto weights = load_weights(model->file_, model->config_, *model->shards_, *model->kernels_, *model->pool_,
                                &model->mapping_);
    if (!weights) return in_file(weights.error());
    model->weights_ = std::move(*weights);
    TRY_ASSIGN(model->scratch_, Scratch::allocate(model->config_, *model->shards_));
    return model;
}

MemoryUse Model::memory() const {
    const std::size_t full_cache_bytes = KvCache(config_, cache_type_).prefix_bytes(config_.context_length);
    return {weights_.arena.size(), full_cache_bytes, scratch_.memory.size()};
}

std::uint64_t Model::identity() const {
    constexpr std::size_t kSamples = 16;
    constexpr std::size_t kSampleBytes = 256;
    const auto bytes = mapping_.bytes();
    std::size_t data_begin = bytes.size();
    for (const auto& [name, tensor] : file_.tensors) {
        data_begin = std::min(data_begin, std::size_t(tensor.data.data() - bytes.data()));
    }
    Hash hash;
    hash.add(bytes.first(data_begin));
    for (const auto& [name, tensor] : file_.tensors) {
        for (std::size_t i = 0; i < kSamples; ++i) {
            const std::size_t at = tensor.data.size() / kSamples * i;
            hash.add(tensor.data.subspan(at, std::min(kSampleBytes, tensor.data.size() - at)));
        }
    }
    return hash.value();
}

void Model::forward(const Batch& batch) {
    const std::lock_guard<std::mutex> lock(forward_mutex_);
    mobillama::forward({config_, weights_, *shards_, *kernels_, scratch_, *pool_}, batch);
}

}  // namespace mobillama
