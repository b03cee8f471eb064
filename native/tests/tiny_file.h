// Device files of a few kilobytes, written byte by byte and independently of the reader under test.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gguf.h"
#include "half.h"

namespace tiny {

using mobillama::gguf::TensorType;

class Writer {
public:
    template <class T>
    void number(T value) {
        const auto* raw = reinterpret_cast<const std::byte*>(&value);
        bytes.insert(bytes.end(), raw, raw + sizeof(T));
    }
    void string(const std::string& text) {
        number<std::uint64_t>(text.size());
        const auto* raw = reinterpret_cast<const std::byte*>(text.data());
        bytes.insert(bytes.end(), raw, raw + text.size());
    }
    void pad(std::size_t alignment) { bytes.resize((bytes.size() + alignment - 1) / alignment * alignment); }

    std::vector<std::byte> bytes;
};

struct Shape {
    std::uint32_t vocab_size = 20;
    std::uint32_t hidden_size = 32;
    std::uint32_t intermediate_size = 64;
    std::uint32_t heads = 2;
    std::uint32_t key_value_heads = 1;
    std::uint32_t head_dim = 16;
    std::uint32_t context_length = 300;
    std::uint32_t delta_rank = 0;
    std::vector<std::uint32_t> ffn_of_layer = {0, 0};
    bool gains = false;
    bool tied = false;
    TensorType type = TensorType::q4_0;
};

class File {
public:
    explicit File(const Shape& shape) : shape_(shape) {
        const std::uint32_t width = shape.heads * shape.head_dim;
        const std::uint32_t key_value_width = shape.key_value_heads * shape.head_dim;
        add("token_embd.weight", shape.type, shape.hidden_size, shape.vocab_size);
        std::uint32_t ffns = 0;
        for (const std::uint32_t ffn : shape.ffn_of_layer) ffns = std::max(ffns, ffn + 1);
        for (std::uint32_t i = 0; i < ffns; ++i) {
            const std::string name = "ffn." + std::to_string(i);
            add(name + ".gate.weight", shape.type, shape.hidden_size, shape.intermediate_size);
            add(name + ".up.weight", shape.type, shape.hidden_size, shape.intermediate_size);
            add(name + ".down.weight", shape.type, shape.intermediate_size, shape.hidden_size);
        }
        for (std::size_t i = 0; i < shape.ffn_of_layer.size(); ++i) {
            const std::string name = "blk." + std::to_string(i);
            add(name + ".attn_norm.weight", TensorType::f32, shape.hidden_size, 1);
            add(name + ".ffn_norm.weight", TensorType::f32, shape.hidden_size, 1);
            add(name + ".attn_q.weight", shape.type, shape.hidden_size, width);
            add(name + ".attn_k.weight", shape.type, shape.hidden_size, key_value_width);
            add(name + ".attn_v.weight", shape.type, shape.hidden_size, key_value_width);
            add(name + ".attn_output.weight", shape.type, width, shape.hidden_size);
            if (shape.gains) add(name + ".ffn_gain.weight", TensorType::f32, shape.intermediate_size, 1);
            if (shape.delta_rank == 0) continue;
            for (const std::string part : {"gate", "up", "down"}) {
                const bool down = part == "down";
                const std::uint32_t in = down ? shape.intermediate_size : shape.hidden_size;
                const std::uint32_t out = down ? shape.hidden_size : shape.intermediate_size;
                add(name + ".ffn_delta." + part + "_a.weight", TensorType::f16, in, shape.delta_rank);
                add(name + ".ffn_delta." + part + "_b.weight", TensorType::f16, shape.delta_rank, out);
            }
        }
        add("output_norm.weight", TensorType::f32, shape.hidden_size, 1);
        if (!shape.tied) add("output.weight", shape.type, shape.hidden_size, shape.vocab_size);
    }

    std::vector<std::byte> bytes() const {
        Writer file;
        file.number<std::uint32_t>(0x46554747);
        file.number<std::uint32_t>(3);
        file.number<std::uint64_t>(tensors_.size());
        Writer metadata;
        const std::uint64_t entries = write_metadata(metadata);
        file.number<std::uint64_t>(entries);
        file.bytes.insert(file.bytes.end(), metadata.bytes.begin(), metadata.bytes.end());
        std::uint64_t offset = 0;
        for (const Tensor& tensor : tensors_) {
            file.string(tensor.name);
            const bool vector = tensor.rows == 1 && tensor.type == TensorType::f32;
            file.number<std::uint32_t>(vector ? 1 : 2);
            file.number<std::uint64_t>(tensor.columns);
            if (!vector) file.number<std::uint64_t>(tensor.rows);
            file.number<std::uint32_t>(std::uint32_t(tensor.type));
            file.number<std::uint64_t>(offset);
            offset += (tensor.data.size() + 31) / 32 * 32;
        }
        file.pad(32);
        for (const Tensor& tensor : tensors_) {
            file.bytes.insert(file.bytes.end(), tensor.data.begin(), tensor.data.end());
            file.pad(32);
        }
        return file.bytes;
    }

private:
    struct Tensor {
        std::string name;
        TensorType type;
        std::uint64_t columns;
        std::uint64_t rows;
        std::vector<std::byte> data;
    };

    void add(const std::string& name, TensorType type, std::uint64_t columns, std::uint64_t rows) {
        Writer data;
        std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
        for (std::uint64_t i = 0; i < columns * rows;) {
            if (type == TensorType::f32) {
                data.number(uniform(random_));
                i += 1;
            } else if (type == TensorType::f16) {
                data.number(mobillama::float_to_half(uniform(random_) - 1.0f));
                i += 1;
            } else {
                data.number(mobillama::float_to_half(uniform(random_) * (type == TensorType::q4_0 ? 0.05f : 0.003f)));
                for (int byte = 0; byte < (type == TensorType::q4_0 ? 16 : 32); ++byte) {
                    data.number(std::uint8_t(random_() & 255));
                }
                i += 32;
            }
        }
        tensors_.push_back({name, type, columns, rows, data.bytes});
    }

    std::uint64_t write_metadata(Writer& out) const {
        std::uint64_t count = 0;
        const auto key = [&](const std::string& name, std::uint32_t type) {
            out.string(name);
            out.number(type);
            ++count;
        };
        const auto uint32 = [&](const std::string& name, std::uint32_t value) {
            key("mobillama." + name, 4);
            out.number(value);
        };
        const auto float32 = [&](const std::string& name, float value) {
            key("mobillama." + name, 6);
            out.number(value);
        };
        key("general.architecture", 8);
        out.string("mobillama");
        uint32("block_count", std::uint32_t(shape_.ffn_of_layer.size()));
        uint32("context_length", shape_.context_length);
        uint32("embedding_length", shape_.hidden_size);
        uint32("feed_forward_length", shape_.intermediate_size);
        uint32("vocab_size", shape_.vocab_size);
        uint32("attention.head_count", shape_.heads);
        uint32("attention.head_count_kv", shape_.key_value_heads);
        uint32("attention.key_length", shape_.head_dim);
        float32("attention.layer_norm_rms_epsilon", 1e-5f);
        float32("rope.freq_base", 10000.0f);
        uint32("ffn_delta_rank", shape_.delta_rank);
        key("mobillama.ffn_of_layer", 9);
        out.number<std::uint32_t>(4);
        out.number<std::uint64_t>(shape_.ffn_of_layer.size());
        for (const std::uint32_t ffn : shape_.ffn_of_layer) out.number(ffn);
        key("tokenizer.ggml.tokens", 9);
        out.number<std::uint32_t>(8);
        out.number<std::uint64_t>(shape_.vocab_size);
        for (std::uint32_t i = 0; i < shape_.vocab_size; ++i) out.string("t" + std::to_string(i));
        key("general.quantized", 7);
        out.number(std::uint8_t(1));
        return count;
    }

    Shape shape_;
    std::vector<Tensor> tensors_;
    std::mt19937 random_{1};
};

// One file of every kind that the loader treats differently.
inline std::vector<std::vector<std::byte>> samples() {
    std::vector<Shape> shapes(6);
    shapes[1].type = TensorType::q8_0;
    shapes[2].type = TensorType::f16;
    shapes[3].delta_rank = 3;
    shapes[3].gains = true;
    shapes[4].ffn_of_layer = {0, 1, 0};
    shapes[5].tied = true;
    std::vector<std::vector<std::byte>> files;
    for (const Shape& shape : shapes) files.push_back(File(shape).bytes());
    return files;
}

}  // namespace tiny
