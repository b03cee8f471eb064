// The parser on good files, on every truncation of one, and on claims that a file cannot keep.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "config.h"
#include "gguf.h"
#include "tiny_file.h"

using namespace mobillama;

namespace {

std::string error_of(const std::vector<std::byte>& bytes) {
    const auto file = gguf::parse(bytes);
    if (!file) return file.error().message;
    const auto config = read_config(*file);
    return config ? "" : config.error().message;
}

// Where `text` lies in the file.
std::size_t find(const std::vector<std::byte>& bytes, const std::string& text) {
    const auto* raw = reinterpret_cast<const std::byte*>(text.data());
    return std::size_t(std::search(bytes.begin(), bytes.end(), raw, raw + text.size()) - bytes.begin());
}

// The file with the number `distance` bytes behind the end of `name` replaced.
template <class T>
std::vector<std::byte> with_number(std::vector<std::byte> bytes, const std::string& name, std::size_t distance, T value) {
    std::memcpy(bytes.data() + find(bytes, name) + name.size() + distance, &value, sizeof value);
    return bytes;
}

const std::vector<std::byte> kGood = tiny::File({}).bytes();

TEST(good_files_are_read) {
    for (const auto& bytes : tiny::samples()) CHECK(error_of(bytes) == "");
}

TEST(every_truncation_is_an_error) {
    for (std::size_t size = 0; size < kGood.size() - 31; ++size) {
        // A buffer of just this size, so that the address sanitizer sees a read beyond it.
        const std::vector<std::byte> part(kGood.begin(), kGood.begin() + std::ptrdiff_t(size));
        CHECK(!gguf::parse(part));
    }
}

TEST(absurd_counts_are_refused_before_anything_is_allocated) {
    auto bytes = kGood;
    const std::uint64_t many = 1'000'000'000'000;
    std::memcpy(bytes.data() + 8, &many, sizeof many);
    CHECK_CONTAINS(error_of(bytes), "tensor count 1000000000000");
    bytes = kGood;
    std::memcpy(bytes.data() + 16, &many, sizeof many);
    CHECK_CONTAINS(error_of(bytes), "metadata count 1000000000000");
    CHECK_CONTAINS(error_of(with_number(kGood, "tokenizer.ggml.tokens", 8, many)), "tokenizer.ggml.tokens");
    CHECK_CONTAINS(error_of(with_number(kGood, "mobillama.ffn_of_layer", 8, ~std::uint64_t(0))), "ffn_of_layer");
}

TEST(tensors_that_cannot_be_are_refused) {
    const std::string name = "blk.0.attn_q.weight";
    CHECK_CONTAINS(error_of(with_number(kGood, name, 0, std::uint32_t(9))), "9 dimensions");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 4, std::uint64_t(33))), "blocks of 32 do not divide");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 12, ~std::uint64_t(0) / 16)), "larger than the file");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 12, std::uint64_t(0))), "dimension of zero");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 20, std::uint32_t(14))), "ggml type 14");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 24, std::uint64_t(1))), "not a multiple");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 24, std::uint64_t(1) << 62)), "beyond the end of the file");
    CHECK_CONTAINS(error_of(with_number(kGood, name, 24, std::uint64_t(0))), "overlap");
}

TEST(names_appear_once) {
    auto bytes = kGood;
    const std::size_t at = find(bytes, "blk.1.attn_q.weight");
    std::memcpy(bytes.data() + at, "blk.0", 5);
    CHECK_CONTAINS(error_of(bytes), "appears twice");
}

TEST(shapes_that_the_engine_cannot_run_are_refused_by_name) {
    CHECK_CONTAINS(error_of(with_number(kGood, "mobillama.embedding_length", 4, std::uint32_t(33))), "embedding_length");
    CHECK_CONTAINS(error_of(with_number(kGood, "mobillama.block_count", 4, std::uint32_t(0))), "block_count");
    CHECK_CONTAINS(error_of(with_number(kGood, "mobillama.block_count", 4, std::uint32_t(3))), "ffn_of_layer");
    CHECK_CONTAINS(error_of(with_number(kGood, "mobillama.ffn_of_layer", 20, std::uint32_t(7))), "names FFN 7");
    CHECK_CONTAINS(error_of(with_number(kGood, "attention.key_length", 4, std::uint32_t(17))), "key_length");
    CHECK_CONTAINS(error_of(with_number(kGood, "rope.freq_base", 4, 0.0f)), "freq_base");
}

}  // namespace

int main() { return check::run_all(); }
