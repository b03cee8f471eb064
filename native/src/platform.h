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

// What is streamed at the speed of the memory bus wants huge pages: with small ones address translation costs a
// fifth of it. What is touched here and there wants small ones: the system fetches and clears whole pages.
enum class Pages { huge, small };

// Zeroed memory that starts on a 2 MiB boundary.
class PageBuffer {
public:
    static Result<PageBuffer> allocate(std::size_t size_bytes, Pages pages = Pages::huge);
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
