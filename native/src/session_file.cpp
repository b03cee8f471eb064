// Session::save and Session::load: the keys and values of a prefix on disk.
//
// A header of seven 64-bit words, the cache's pieces in the order of KvCache::for_each_piece, and a checksum.
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "hash.h"
#include "session.h"

namespace mobillama {
namespace {

constexpr std::uint64_t kMagic = 0x31564b4c424f4d;  // "MOBLKV1"

enum HeaderField { kFileMagic, kIdentity, kCacheType, kHeadCount, kHeadDim, kPosition, kPayloadBytes, kFieldCount };
using Header = std::array<std::uint64_t, kFieldCount>;

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using FileHandle = std::unique_ptr<std::FILE, CloseFile>;

Error system_error(const std::string& path, const char* action) {
    return Error{path + ": cannot " + action + ": " + std::strerror(errno)};
}

Header describe(const Model& model, const KvCache& cache, std::uint32_t position) {
    Header header{};
    header[kFileMagic] = kMagic;
    header[kIdentity] = model.identity();
    header[kCacheType] = std::uint64_t(cache.type());
    header[kHeadCount] = std::uint64_t(model.config().num_hidden_layers) * model.config().num_key_value_heads;
    header[kHeadDim] = model.config().head_dim;
    header[kPosition] = position;
    header[kPayloadBytes] = cache.prefix_bytes(position);
    return header;
}

}  // namespace

Status Session::save(const std::string& path) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    FileHandle file(std::fopen(path.c_str(), "wb"));
    if (!file) return system_error(path, "write");
    const Header header = describe(*model_, cache_, position_);
    Hash hash;
    bool written = std::fwrite(header.data(), sizeof header, 1, file.get()) == 1;
    cache_.for_each_piece(position_, [&](std::span<std::byte> piece) {
        hash.add(piece);
        written = written && std::fwrite(piece.data(), piece.size(), 1, file.get()) == 1;
    });
    const std::uint64_t checksum = hash.value();
    written = written && std::fwrite(&checksum, sizeof checksum, 1, file.get()) == 1;
    // Closing writes what is buffered, so it may fail as well.
    if (std::fclose(file.release()) != 0 || !written) return system_error(path, "write");
    return Done{};
}

Status Session::load(const std::string& path) {
    const std::lock_guard<std::mutex> lock(mutex_);
    FileHandle file(std::fopen(path.c_str(), "rb"));
    if (!file) return system_error(path, "open");
    Header header{};
    if (std::fread(header.data(), sizeof header, 1, file.get()) != 1 || header[kFileMagic] != kMagic) {
        return Error{path + ": not a saved prefix"};
    }
    const std::uint64_t position = header[kPosition];
    if (position > config().context_length) {
        return Error{path + ": holds " + std::to_string(position) + " positions; the context is " +
                     std::to_string(config().context_length)};
    }
    const Header expected = describe(*model_, cache_, std::uint32_t(position));
    if (header[kIdentity] != expected[kIdentity]) return Error{path + ": was saved with another model"};
    if (header[kCacheType] != expected[kCacheType]) return Error{path + ": was saved with another kv_type"};
    if (header != expected) return Error{path + ": the header does not fit the model"};

    // From here on the cache is overwritten: a failure leaves an empty session.
    position_ = 0;
    TRY(cache_.reserve(std::uint32_t(position)));
    Hash hash;
    bool complete = true;
    cache_.for_each_piece(std::uint32_t(position), [&](std::span<std::byte> piece) {
        complete = complete && std::fread(piece.data(), piece.size(), 1, file.get()) == 1;
        if (complete) hash.add(piece);
    });
    std::uint64_t checksum = 0;
    complete = complete && std::fread(&checksum, sizeof checksum, 1, file.get()) == 1;
    if (!complete) return Error{path + ": the file is truncated"};
    if (checksum != hash.value()) return Error{path + ": the file is damaged: its checksum does not match"};
    position_ = std::uint32_t(position);
    return Done{};
}

}  // namespace mobillama
