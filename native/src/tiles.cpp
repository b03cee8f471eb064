#include "tiles.h"

#include <algorithm>
#include <cstring>

namespace mobillama {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHalfBytes = sizeof(std::uint16_t);

// A block quantised in groups of 4 columns: the file keeps a scale and then a row's groups one after the other,
// a tile keeps the 16 rows' same group side by side.
void pack_blocks(const std::byte* source, std::size_t group_count, std::uint32_t blocks, std::uint32_t row,
                 std::byte* tile) {
    const std::size_t block_bytes = group_count * kLine;
    std::byte* scales = tile + blocks * block_bytes;
    for (std::uint32_t block = 0; block < blocks; ++block) {
        std::memcpy(scales + (block * kTileRows + row) * kHalfBytes, source, kHalfBytes);
        source += kHalfBytes;
        std::byte* target = tile + block * block_bytes + row * 4;
        for (std::size_t group = 0; group < group_count; ++group, source += 4) {
            std::memcpy(target + group * kLine, source, 4);
        }
    }
}

void pack_halves(const std::byte* source, std::uint32_t columns, std::uint32_t row, std::byte* tile) {
    for (std::uint32_t column = 0; column < columns; ++column) {
        std::memcpy(tile + (column * kTileRows + row) * kHalfBytes, source + column * kHalfBytes, kHalfBytes);
    }
}

}  // namespace

std::size_t tile_bytes(gguf::TensorType type, std::uint32_t columns) {
    const std::size_t blocks = columns / kBlock;
    const std::size_t scales = blocks * kTileRows * kHalfBytes;
    std::size_t size = 0;
    switch (type) {
        case gguf::TensorType::q4_0: size = blocks * 4 * kLine + scales; break;
        case gguf::TensorType::q8_0: size = blocks * 8 * kLine + scales; break;
        case gguf::TensorType::f16: size = columns * kTileRows * kHalfBytes; break;
        case gguf::TensorType::f32: assert(false && "f32 tensors are vectors, which are not packed");
    }
    return (size + kLine - 1) / kLine * kLine;
}

TileRun Matrix::run(Range part, std::size_t shard) const {
    assert(part.begin % kTileRows == 0 && part.end <= rows && shard < shards.size());
    const Shard& source = shards[shard];
    return {source.data + part.begin / kTileRows * source.tile_bytes, source.tile_bytes, part.size(),
            source.columns.size(), reused};
}

std::size_t packed_bytes(const gguf::Tensor& tensor, const std::vector<Range>& shards) {
    std::size_t size = 0;
    for (const Range& columns : shards) size += tiles_of(tensor.rows()) * tile_bytes(tensor.type, columns.size());
    return size;
}

void pack_tiles(const gguf::Tensor& tensor, Range columns, Range tiles, std::byte* target) {
    const std::size_t stride = tile_bytes(tensor.type, columns.size());
    const std::size_t row_bytes = tensor.data.size() / tensor.rows();
    const std::uint32_t blocks = columns.size() / kBlock;
    for (std::uint32_t tile = tiles.begin; tile < tiles.end; ++tile, target += stride) {
        const std::uint64_t first = std::uint64_t(tile) * kTileRows;
        const auto row_count = std::uint32_t(std::min<std::uint64_t>(kTileRows, tensor.rows() - first));
        for (std::uint32_t row = 0; row < row_count; ++row) {
            const std::byte* source = tensor.data.data() + (first + row) * row_bytes;
            switch (tensor.type) {
                case gguf::TensorType::q4_0:
                    pack_blocks(source + columns.begin / kBlock * 18, 4, blocks, row, target);
                    break;
                case gguf::TensorType::q8_0:
                    pack_blocks(source + columns.begin / kBlock * 34, 8, blocks, row, target);
                    break;
                case gguf::TensorType::f16:
                    pack_halves(source + columns.begin * kHalfBytes, columns.size(), row, target);
                    break;
                case gguf::TensorType::f32: break;
            }
        }
    }
}

}  // namespace mobillama
