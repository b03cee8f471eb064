// platform.h for Linux and macOS.
#include "platform.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace mobillama {
namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

std::size_t page_size() { return std::size_t(sysconf(_SC_PAGESIZE)); }

Error system_error(const std::string& path, const char* action) {
    return Error{path + ": cannot " + action + ": " + std::strerror(errno)};
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return system_error(path, "open");
    struct stat status {};
    const bool known = fstat(descriptor, &status) == 0;
    const bool regular = known && S_ISREG(status.st_mode);
    if (!regular || status.st_size == 0) {
        close(descriptor);
        if (!known) return system_error(path, "read its size");
        return Error{path + (regular ? ": the file is empty" : ": not a regular file")};
    }
    const auto size = std::size_t(status.st_size);
    void* address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    if (address == MAP_FAILED) return system_error(path, "map");
    MappedFile file;
    file.bytes_ = {static_cast<const std::byte*>(address), size};
    return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
}

MappedFile::~MappedFile() {
    if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::drop_pages(std::span<const std::byte> part) const {
    const std::size_t page = page_size();
    const auto begin = (reinterpret_cast<std::uintptr_t>(part.data()) + page - 1) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(part.data() + part.size()) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Result<PageBuffer> PageBuffer::allocate(std::size_t size_bytes, [[maybe_unused]] Pages pages) {
    PageBuffer buffer;
    if (size_bytes == 0) return buffer;
    if (size_bytes > SIZE_MAX - 2 * kHugePage) return Error{"out of memory: a buffer has an absurd size"};
    const std::size_t mapping_bytes = size_bytes + kHugePage;
    void* mapping = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        return Error{"out of memory: cannot reserve " + std::to_string(size_bytes >> 20) + " MiB"};
    }
    const auto aligned = (reinterpret_cast<std::uintptr_t>(mapping) + kHugePage - 1) / kHugePage * kHugePage;
    buffer.data_ = reinterpret_cast<std::byte*>(aligned);
    buffer.size_bytes_ = size_bytes;
    buffer.mapping_ = mapping;
    buffer.mapping_bytes_ = mapping_bytes;
#ifdef MADV_HUGEPAGE
    // A small buffer keeps small pages: rounding it up to 2 MiB would waste more than it saves.
    if (pages == Pages::huge && size_bytes >= kHugePage) madvise(buffer.data_, size_bytes, MADV_HUGEPAGE);
#endif
    return buffer;
}

PageBuffer::PageBuffer(PageBuffer&& other) noexcept { *this = std::move(other); }

PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(mapping_, other.mapping_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
    return *this;
}

PageBuffer::~PageBuffer() {
    if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

#ifdef __linux__

struct ScopedAffinity::Saved {
    cpu_set_t processors;
};

ScopedAffinity::ScopedAffinity(unsigned index) : saved_(std::make_unique<Saved>()) {
    if (sched_getaffinity(0, sizeof(cpu_set_t), &saved_->processors) != 0) {
        saved_.reset();
        return;
    }
    const int count = CPU_COUNT(&saved_->processors);
    int remaining = int(index % unsigned(count));
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (!CPU_ISSET(processor, &saved_->processors) || remaining-- > 0) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(processor, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

ScopedAffinity::~ScopedAffinity() {
    if (saved_) sched_setaffinity(0, sizeof(cpu_set_t), &saved_->processors);
}

#else  // macOS offers no binding of a thread to a processor

struct ScopedAffinity::Saved {};
ScopedAffinity::ScopedAffinity(unsigned) {}
ScopedAffinity::~ScopedAffinity() = default;

#endif

}  // namespace mobillama
