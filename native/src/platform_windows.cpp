// platform.h for Windows. Compiles against the documented API; never yet run on a Windows machine.
#include "platform.h"

#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <utility>

namespace mobillama {
namespace {

std::wstring wide(const std::string& utf8) {
    const int length = MultiByteToWideChar(CP_UTF8, 0, utf8.data(), int(utf8.size()), nullptr, 0);
    std::wstring text(std::size_t(length), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, utf8.data(), int(utf8.size()), text.data(), length);
    return text;
}

Error system_error(const std::string& path, const char* action) {
    return Error{path + ": cannot " + action + ": Windows error " + std::to_string(GetLastError())};
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
    const HANDLE file = CreateFileW(wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING,
                                    FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) return system_error(path, "open");
    LARGE_INTEGER size{};
    if (!GetFileSizeEx(file, &size) || size.QuadPart == 0) {
        CloseHandle(file);
        return Error{path + ": the file is empty"};
    }
    const HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    CloseHandle(file);
    if (mapping == nullptr) return system_error(path, "map");
    const void* address = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    CloseHandle(mapping);
    if (address == nullptr) return system_error(path, "map");
    MappedFile mapped;
    mapped.bytes_ = {static_cast<const std::byte*>(address), std::size_t(size.QuadPart)};
    return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
}

MappedFile::~MappedFile() {
    if (!bytes_.empty()) UnmapViewOfFile(bytes_.data());
}

void MappedFile::drop_pages(std::span<const std::byte> part) const {
    // Unlocking pages that are not locked takes them out of the working set.
    VirtualUnlock(const_cast<std::byte*>(part.data()), part.size());
}

Result<PageBuffer> PageBuffer::allocate(std::size_t size_bytes, Pages) {
    PageBuffer buffer;
    if (size_bytes == 0) return buffer;
    void* address = VirtualAlloc(nullptr, size_bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (address == nullptr) {
        return Error{"out of memory: cannot reserve " + std::to_string(size_bytes >> 20) + " MiB"};
    }
    buffer.data_ = static_cast<std::byte*>(address);
    buffer.size_bytes_ = size_bytes;
    buffer.mapping_ = address;
    buffer.mapping_bytes_ = size_bytes;
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
    if (mapping_ != nullptr) VirtualFree(mapping_, 0, MEM_RELEASE);
}

struct ScopedAffinity::Saved {
    DWORD_PTR processors;
};

ScopedAffinity::ScopedAffinity(unsigned index) {
    const DWORD_PTR previous = SetThreadAffinityMask(GetCurrentThread(), DWORD_PTR(1) << (index % 64));
    if (previous != 0) saved_ = std::make_unique<Saved>(Saved{previous});
}

ScopedAffinity::~ScopedAffinity() {
    if (saved_) SetThreadAffinityMask(GetCurrentThread(), saved_->processors);
}

}  // namespace mobillama
