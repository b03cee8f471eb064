#include "gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace mobillama::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read in place: little-endian only");

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint32_t kVersion = 3;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1 << 16;
constexpr std::uint64_t kMaxNameBytes = 65535;  // the specification's limit for keys
constexpr std::uint64_t kMinEntryBytes = 8 + 4 + 1;  // a key or name's length, a type, one byte of value

std::string quoted(std::string_view name) { return "'" + std::string(name.substr(0, 80)) + "'"; }

// Reads forward through the bytes and never past their end.
class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

    std::uint64_t position() const { return position_; }
    std::uint64_t remaining() const { return bytes_.size() - position_; }

    template <class T>
    Result<T> number(std::string_view what) {
        if (remaining() < sizeof(T)) return truncated(what);
        T value;
        std::memcpy(&value, bytes_.data() + position_, sizeof(T));
        position_ += sizeof(T);
        return value;
    }

    Result<std::span<const std::byte>> take(std::uint64_t count, std::string_view what) {
        if (count > remaining()) return truncated(what);
        const auto part = bytes_.subspan(position_, count);
        position_ += count;
        return part;
    }

    Result<std::string_view> string(std::string_view what) {
        std::uint64_t length = 0;
        TRY_ASSIGN(length, number<std::uint64_t>(what));
        std::span<const std::byte> text;
        TRY_ASSIGN(text, take(length, what));
        return std::string_view(reinterpret_cast<const char*>(text.data()), text.size());
    }

private:
    Error truncated(std::string_view what) const {
        return Error{"the file ends inside " + std::string(what) + " (byte " + std::to_string(position_) + " of " +
                     std::to_string(bytes_.size()) + ")"};
    }

    std::span<const std::byte> bytes_;
    std::uint64_t position_ = 0;
};

template <class T, class Wide>
Result<Value> scalar(Reader& reader, std::string_view what) {
    T value{};
    TRY_ASSIGN(value, reader.number<T>(what));
    return Value(Wide(value));
}

Result<Value> read_array(Reader& reader, const std::string& what) {
    Array array;
    std::uint32_t type = 0;
    TRY_ASSIGN(type, reader.number<std::uint32_t>(what));
    TRY_ASSIGN(array.count, reader.number<std::uint64_t>(what));
    if (type > std::uint32_t(ValueType::float64) || type == std::uint32_t(ValueType::array)) {
        return Error{what + " is an array of type " + std::to_string(type) + ", which is not supported"};
    }
    array.element_type = ValueType(type);
    const bool strings = array.element_type == ValueType::string;
    const std::uint64_t least_bytes = strings ? sizeof(std::uint64_t) : element_bytes(array.element_type);
    if (array.count > reader.remaining() / least_bytes) {
        return Error{what + " claims " + std::to_string(array.count) + " elements, more than the file can hold"};
    }
    if (strings) {
        array.strings.reserve(array.count);
        for (std::uint64_t i = 0; i < array.count; ++i) {
            std::string_view text;
            TRY_ASSIGN(text, reader.string(what));
            array.strings.push_back(text);
        }
    } else {
        TRY_ASSIGN(array.raw, reader.take(array.count * least_bytes, what));
    }
    return Value(std::move(array));
}

Result<Value> read_value(Reader& reader, const std::string& what) {
    std::uint32_t type = 0;
    TRY_ASSIGN(type, reader.number<std::uint32_t>(what));
    switch (ValueType(type)) {
        case ValueType::uint8: return scalar<std::uint8_t, std::uint64_t>(reader, what);
        case ValueType::uint16: return scalar<std::uint16_t, std::uint64_t>(reader, what);
        case ValueType::uint32: return scalar<std::uint32_t, std::uint64_t>(reader, what);
        case ValueType::uint64: return scalar<std::uint64_t, std::uint64_t>(reader, what);
        case ValueType::int8: return scalar<std::int8_t, std::int64_t>(reader, what);
        case ValueType::int16: return scalar<std::int16_t, std::int64_t>(reader, what);
        case ValueType::int32: return scalar<std::int32_t, std::int64_t>(reader, what);
        case ValueType::int64: return scalar<std::int64_t, std::int64_t>(reader, what);
        case ValueType::float32: return scalar<float, double>(reader, what);
        case ValueType::float64: return scalar<double, double>(reader, what);
        case ValueType::boolean: {
            std::uint8_t value = 0;
            TRY_ASSIGN(value, reader.number<std::uint8_t>(what));
            if (value > 1) return Error{what + " is a boolean with the value " + std::to_string(value)};
            return Value(value == 1);
        }
        case ValueType::string: {
            std::string_view text;
            TRY_ASSIGN(text, reader.string(what));
            return Value(text);
        }
        case ValueType::array: return read_array(reader, what);
    }
    return Error{what + " has the unknown value type " + std::to_string(type)};
}

struct BlockShape {
    std::uint64_t elements;
    std::uint64_t bytes;
};

BlockShape block_shape(TensorType type) {
    switch (type) {
        case TensorType::f32: return {1, 4};
        case TensorType::f16: return {1, 2};
        case TensorType::q4_0: return {32, 18};
        case TensorType::q8_0: return {32, 34};
    }
    return {0, 0};
}

// A tensor's size in bytes; an error when a dimension is zero or the product cannot fit in `limit`.
Result<std::uint64_t> data_bytes(const Tensor& tensor, const std::string& what, std::uint64_t limit) {
    const BlockShape block = block_shape(tensor.type);
    if (tensor.columns() % block.elements != 0) {
        return Error{what + " has rows of " + std::to_string(tensor.columns()) + " elements, which blocks of " +
                     std::to_string(block.elements) + " do not divide"};
    }
    std::uint64_t size = block.bytes;
    for (std::size_t i = 0; i < tensor.dimensions.size(); ++i) {
        const std::uint64_t factor = tensor.dimensions[i] / (i == 0 ? block.elements : 1);
        if (factor == 0) return Error{what + " has a dimension of zero"};
        if (size > limit / factor) return Error{what + " is larger than the file"};
        size *= factor;
    }
    return size;
}

struct TensorEntry {
    std::string_view name;
    Tensor tensor;
    std::uint64_t offset = 0;
};

Result<TensorEntry> read_tensor_entry(Reader& reader, std::uint64_t index) {
    TensorEntry entry;
    std::string what = "the name of tensor " + std::to_string(index);
    TRY_ASSIGN(entry.name, reader.string(what));
    if (entry.name.empty() || entry.name.size() > kMaxNameBytes) {
        return Error{what + " has " + std::to_string(entry.name.size()) + " bytes"};
    }
    what = "tensor " + quoted(entry.name);
    Tensor& tensor = entry.tensor;
    TRY_ASSIGN(tensor.dimension_count, reader.number<std::uint32_t>(what));
    if (tensor.dimension_count < 1 || tensor.dimension_count > tensor.dimensions.size()) {
        return Error{what + " has " + std::to_string(tensor.dimension_count) + " dimensions; 1 to 4 are possible"};
    }
    for (std::uint32_t i = 0; i < tensor.dimension_count; ++i) {
        TRY_ASSIGN(tensor.dimensions[i], reader.number<std::uint64_t>(what));
    }
    std::uint32_t type = 0;
    TRY_ASSIGN(type, reader.number<std::uint32_t>(what));
    tensor.type = TensorType(type);
    if (block_shape(tensor.type).bytes == 0) {
        return Error{what + " has ggml type " + std::to_string(type) +
                     "; f32 (0), f16 (1), q4_0 (2) and q8_0 (8) are supported"};
    }
    TRY_ASSIGN(entry.offset, reader.number<std::uint64_t>(what));
    return entry;
}

// Give each entry its bytes, and make sure that no two share any.
Status locate(std::vector<TensorEntry>& entries, std::span<const std::byte> data, std::uint64_t alignment) {
    for (TensorEntry& entry : entries) {
        const std::string what = "tensor " + quoted(entry.name);
        std::uint64_t size = 0;
        TRY_ASSIGN(size, data_bytes(entry.tensor, what, data.size()));
        if (entry.offset % alignment != 0) {
            return Error{what + " starts at offset " + std::to_string(entry.offset) + ", not a multiple of " +
                         std::to_string(alignment)};
        }
        if (entry.offset > data.size() || size > data.size() - entry.offset) {
            return Error{what + " reaches beyond the end of the file: the file is truncated or its offset is wrong"};
        }
        entry.tensor.data = data.subspan(entry.offset, size);
    }
    std::sort(entries.begin(), entries.end(),
              [](const TensorEntry& a, const TensorEntry& b) { return a.offset < b.offset; });
    for (std::size_t i = 1; i < entries.size(); ++i) {
        if (entries[i].offset < entries[i - 1].offset + entries[i - 1].tensor.data.size()) {
            return Error{"tensors " + quoted(entries[i - 1].name) + " and " + quoted(entries[i].name) + " overlap"};
        }
    }
    return Done{};
}

Result<std::uint64_t> alignment_of(const File& file) {
    const auto found = file.metadata.find("general.alignment");
    if (found == file.metadata.end()) return kDefaultAlignment;
    const auto* alignment = std::get_if<std::uint64_t>(&found->second);
    if (alignment == nullptr || !std::has_single_bit(*alignment) || *alignment < 8 || *alignment > kMaxAlignment) {
        return Error{"general.alignment must be a power of two from 8 to " + std::to_string(kMaxAlignment)};
    }
    return *alignment;
}

}  // namespace

std::size_t element_bytes(ValueType type) {
    switch (type) {
        case ValueType::uint8:
        case ValueType::int8:
        case ValueType::boolean: return 1;
        case ValueType::uint16:
        case ValueType::int16: return 2;
        case ValueType::uint32:
        case ValueType::int32:
        case ValueType::float32: return 4;
        case ValueType::uint64:
        case ValueType::int64:
        case ValueType::float64: return 8;
        case ValueType::string:
        case ValueType::array: return 0;
    }
    return 0;
}

const char* type_name(TensorType type) {
    switch (type) {
        case TensorType::f32: return "f32";
        case TensorType::f16: return "f16";
        case TensorType::q4_0: return "q4_0";
        case TensorType::q8_0: return "q8_0";
    }
    return "unknown";
}

Result<File> parse(std::span<const std::byte> bytes) {
    Reader reader(bytes);
    std::uint32_t magic = 0;
    std::uint32_t version = 0;
    std::uint64_t tensor_count = 0;
    std::uint64_t metadata_count = 0;
    TRY_ASSIGN(magic, reader.number<std::uint32_t>("the magic number"));
    if (magic != kMagic) return Error{"not a GGUF file: it does not begin with 'GGUF'"};
    TRY_ASSIGN(version, reader.number<std::uint32_t>("the version"));
    if (version != kVersion) {
        return Error{"GGUF version " + std::to_string(version) + " is not supported; version 3 is"};
    }
    TRY_ASSIGN(tensor_count, reader.number<std::uint64_t>("the tensor count"));
    TRY_ASSIGN(metadata_count, reader.number<std::uint64_t>("the metadata count"));
    if (tensor_count > reader.remaining() / kMinEntryBytes) {
        return Error{"the tensor count " + std::to_string(tensor_count) + " is more than the file can hold"};
    }
    if (metadata_count > reader.remaining() / kMinEntryBytes) {
        return Error{"the metadata count " + std::to_string(metadata_count) + " is more than the file can hold"};
    }

    File file;
    for (std::uint64_t i = 0; i < metadata_count; ++i) {
        std::string_view key;
        TRY_ASSIGN(key, reader.string("the name of metadata entry " + std::to_string(i)));
        if (key.empty() || key.size() > kMaxNameBytes) {
            return Error{"metadata entry " + std::to_string(i) + " has a name of " + std::to_string(key.size()) +
                         " bytes"};
        }
        Result<Value> value = read_value(reader, "metadata " + quoted(key));
        if (!value) return value.error();
        if (!file.metadata.emplace(key, std::move(*value)).second) {
            return Error{"metadata " + quoted(key) + " appears twice"};
        }
    }

    std::vector<TensorEntry> entries;
    for (std::uint64_t i = 0; i < tensor_count; ++i) {
        TensorEntry entry;
        TRY_ASSIGN(entry, read_tensor_entry(reader, i));
        entries.push_back(entry);
    }
    std::uint64_t alignment = 0;
    TRY_ASSIGN(alignment, alignment_of(file));
    const std::uint64_t padding = (alignment - reader.position() % alignment) % alignment;
    const bool holds_data = padding <= reader.remaining();
    TRY(locate(entries, holds_data ? bytes.subspan(reader.position() + padding) : bytes.first(0), alignment));
    for (const TensorEntry& entry : entries) {
        if (!file.tensors.emplace(entry.name, entry.tensor).second) {
            return Error{"tensor " + quoted(entry.name) + " appears twice"};
        }
    }
    return file;
}

}  // namespace mobillama::gguf
