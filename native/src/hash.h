// FNV-1a over 64-bit words: tells files and prefixes apart and finds damage. Not meant against forgery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mobillama {

class Hash {
public:
    void add(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const std::size_t count = bytes.size() < sizeof(std::uint64_t) ? bytes.size() : sizeof(std::uint64_t);
            std::uint64_t word = 0;
            std::memcpy(&word, bytes.data(), count);
            value_ = (value_ ^ word) * 0x100000001b3u;
            value_ ^= value_ >> 32;  // words are wider than FNV's bytes: let high bits reach low ones
            bytes = bytes.subspan(count);
        }
    }

    std::uint64_t value() const { return value_; }

private:
    std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace mobillama
