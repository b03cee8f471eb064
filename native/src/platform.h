// All that differs between operating systems: mapped files, large pages of memory, and processor affinity.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "result.h"

namespace mobillama {

// A read-only view of a whole file.
class MappedFile {
public:
    static Result<MappedFile> open(const std::string& path);
    MappedFile() = default;
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    std::span<const std::byte> bytes() const { return bytes_; }

    // Give the physical pages wholly inside `part` back; reading them again fetches them from the file.
    void drop_pages(std::span<const std::byte> part) const;

private:
    std::span<const std::byte> bytes_;
};

// Zeroed memory that starts on a 2 MiB boundary and asks for huge pages: weights are streamed at the speed of
// the memory bus, and with 4 KiB pages address translation costs a fifth of it.
class PageBuffer {
public:
    static Result<PageBuffer> allocate(std::size_t size_bytes);
    PageBuffer() = default;
    PageBuffer(PageBuffer&& other) noexcept;
    PageBuffer& operator=(PageBuffer&& other) noexcept;
    ~PageBuffer();

    std::byte* data() const { return data_; }
    std::size_t size() const { return size_bytes_; }

private:
    std::byte* data_ = nullptr;
    std::size_t size_bytes_ = 0;
    void* mapping_ = nullptr;
    std::size_t mapping_bytes_ = 0;
};

// While it lives, the calling thread stays on the `index`-th processor that this process may use.
class ScopedAffinity {
public:
    explicit ScopedAffinity(unsigned index);
    ~ScopedAffinity();
    ScopedAffinity(const ScopedAffinity&) = delete;
    ScopedAffinity& operator=(const ScopedAffinity&) = delete;

private:
    struct Saved;
    std::unique_ptr<Saved> saved_;
};

}  // namespace mobillama
