// How weights lie in memory: tiles of 16 rows, so that one broadcast activation meets 16 rows in one instruction.
//
//   q4_0   for each block of 32 columns 256 bytes: word i (64 bytes) holds columns 4i..4i+3 of the 16 rows in the
//          low nibbles and columns 16+4i..16+4i+3 in the high ones; after all blocks their scales, 16 f16 a block
//   q8_0   for each block 512 bytes: word i holds columns 4i..4i+3 of the 16 rows; then the scales as above
//   f16    for each column 16 f16
//
// Scales lie apart from the quants so that every load of 64 bytes is aligned. Every instruction set reads this
// one layout. Rows are padded with zeros to a multiple of 16, tiles to a multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gguf.h"
#include "kernels.h"

namespace mobillama {

inline constexpr std::uint32_t kBlock = 32;

inline std::uint32_t tiles_of(std::uint64_t rows) { return std::uint32_t((rows + kTileRows - 1) / kTileRows); }

// The size of one tile over `columns` columns.
std::size_t tile_bytes(gguf::TensorType type, std::uint32_t columns);

// Half-open range of rows, columns, heads or tiles.
struct Range {
    std::uint32_t begin = 0;
    std::uint32_t end = 0;

    std::uint32_t size() const { return end - begin; }
    bool empty() const { return begin == end; }
};

// A matrix in tiles, cut into column shards that each lie in one piece. The bytes belong to someone else.
struct Matrix {
    struct Shard {
        Range columns;
        const std::byte* data = nullptr;
        std::size_t tile_bytes = 0;
    };

    Matmul multiply = nullptr;  // the kernel for this matrix's type
    std::uint32_t rows = 0;
    bool reused = false;  // by several layers
    std::vector<Shard> shards;

    // Rows `part` (it begins on a tile) of column shard `shard`, ready for the kernel.
    TileRun run(Range part, std::size_t shard = 0) const;
    TileRun run_all(std::size_t shard = 0) const { return run({0, rows}, shard); }
};

// The bytes that `tensor` takes when cut at `shards`.
std::size_t packed_bytes(const gguf::Tensor& tensor, const std::vector<Range>& shards);

// Write tiles `tiles` of the columns `columns` of a q4_0, q8_0 or f16 tensor; `target` is the first tile's place.
void pack_tiles(const gguf::Tensor& tensor, Range columns, Range tiles, std::byte* target);

}  // namespace mobillama
