// Reading the GGUF container (version 3, little-endian). The file is untrusted: every count, length, type,
// dimension and offset is checked against what is left of the file before it is used.
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "result.h"

namespace mobillama::gguf {

enum class ValueType : std::uint32_t {
    uint8, int8, uint16, int16, uint32, int32, float32, boolean, string, array, uint64, int64, float64
};

// An array of numbers or booleans as it lies in the file, or of strings as views into it.
struct Array {
    ValueType element_type = ValueType::uint8;
    std::uint64_t count = 0;
    std::span<const std::byte> raw;          // numbers and booleans: count * element size
    std::vector<std::string_view> strings;   // strings
};

// One metadata value; integers are widened, their file type is not kept.
using Value = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, Array>;

// The tensor types this engine reads, by their ggml numbers.
enum class TensorType : std::uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8 };

struct Tensor {
    TensorType type = TensorType::f32;
    std::uint32_t dimension_count = 0;
    std::array<std::uint64_t, 4> dimensions{1, 1, 1, 1};  // innermost first, as in the file
    std::span<const std::byte> data;

    std::uint64_t columns() const { return dimensions[0]; }
    std::uint64_t rows() const { return dimensions[1]; }
};

// All views point into the bytes that were parsed; whoever holds those bytes must outlive this.
struct File {
    std::map<std::string_view, Value> metadata;
    std::map<std::string_view, Tensor> tensors;
};

// The size of an element of `type` in the file; 0 for strings and arrays.
std::size_t element_bytes(ValueType type);

// A tensor type's name, as users write it.
const char* type_name(TensorType type);

// Parse a whole file. Takes time and memory in proportion to `bytes`, whatever they claim.
Result<File> parse(std::span<const std::byte> bytes);

}  // namespace mobillama::gguf
