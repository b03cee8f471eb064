#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mobillama {
namespace {

// One member's way through the layers. All members run the same code; where it says barrier(), they meet.
class MemberPass {
public:
    MemberPass(const ForwardContext& context, const Batch& batch, unsigned member)
        : context_(context),
          config_(context.config),
          kernels_(context.kernels),
          batch_(batch),
          member_(member),
          scratch_(context.scratch.members[member]),
          heads_(context.shards.key_value_heads[member]),
          ffn_columns_(context.shards.ffn_columns[member]),
          position_(batch.first_position),
          count_(batch.count) {
        if (count_ == 1) {
            keep_own_token();
        } else {
            hidden_states_ = context.scratch.hidden_states;
            normed_ = context.scratch.normed;
            const std::uint64_t members = context.pool.size();
            mine_ = {std::uint32_t(count_ * std::uint64_t(member) / members),
                     std::uint32_t(count_ * (std::uint64_t(member) + 1) / members)};
        }
        attended_ = scratch_.attended;
        ffn_ = scratch_.ffn;
        set_group(count_ == 1 ? 1 : kTokenGroup);
    }

    void run() {
        rotate_tables();
        embed();
        for (std::uint32_t i = 0; i < config_.num_hidden_layers; ++i) {
            const Layer& layer = context_.weights.layers[i];
            if (i > 0) add_parts(&MemberScratch::ffn_out, context_.shards.ffn_columns);
            norm(layer.attention_norm);
            store_keys_and_values(layer, i);
            if (i + 1 == config_.num_hidden_layers && !narrow_to_wanted()) return;
            attention(layer, i);
            context_.pool.barrier();
            add_parts(&MemberScratch::attention_out, context_.shards.key_value_heads);
            norm(layer.ffn_norm);
            ffn(layer, after(i));
            context_.pool.barrier();
        }
        add_parts(&MemberScratch::ffn_out, context_.shards.ffn_columns);
        norm(context_.weights.output_norm);
        const Range rows = context_.shards.vocabulary[member_];
        if (rows.empty()) return;
        const Matrix& output = context_.weights.output;
        output.multiply(output.run(rows), normed_, count_, batch_.logits + rows.begin, config_.vocab_size);
    }

private:
    bool owns_all_tokens() const { return normed_.group == 1; }

    // With one token every member keeps the whole residual stream: recomputing it costs less than a barrier.
    void keep_own_token() {
        hidden_states_ = scratch_.hidden_states;
        normed_ = scratch_.normed;
        mine_ = {0, 1};
    }

    void set_group(std::uint32_t group) {
        attended_.group = group;
        ffn_.group = group;
    }

    // In the last layer only the tokens whose logits are wanted need more than their keys and values. Returns
    // whether there are any.
    bool narrow_to_wanted() {
        if (batch_.wanted == Logits::none) return false;
        if (batch_.wanted == Logits::all || count_ == 1) return true;
        const std::uint32_t last = count_ - 1;
        std::memcpy(scratch_.hidden_states, token(last), config_.hidden_size * sizeof(float));
        keep_own_token();
        set_group(1);
        const std::uint32_t half = config_.head_dim / 2;
        scratch_.cosine += last * half;
        scratch_.sine += last * half;
        position_ += last;
        count_ = 1;
        norm(context_.weights.layers.back().attention_norm);
        return true;
    }

    float* token(std::uint32_t t) const { return hidden_states_ + std::size_t(t) * config_.hidden_size; }

    // transformers computes the angles in float32; so do we, or late positions would differ.
    void rotate_tables() {
        const std::uint32_t half = config_.head_dim / 2;
        for (std::uint32_t i = 0; i < half; ++i) {
            const float exponent = float(2 * i) / float(config_.head_dim);
            const float frequency = 1.0f / std::pow(config_.rope_theta, exponent);
            for (std::uint32_t t = 0; t < count_; ++t) {
                const float angle = float(position_ + t) * frequency;
                scratch_.cosine[t * half + i] = std::cos(angle);
                scratch_.sine[t * half + i] = std::sin(angle);
            }
        }
    }

    void embed() {
        for (std::uint32_t t = mine_.begin; t < mine_.end; ++t) {
            if (batch_.tokens != nullptr) {
                dequantise_row(context_.weights.embedding, std::uint64_t(batch_.tokens[t]), token(t));
            } else {
                std::memcpy(token(t), batch_.embeddings + std::size_t(t) * config_.hidden_size,
                            config_.hidden_size * sizeof(float));
            }
        }
    }

    // Add what each member has computed of a projection to the residual stream, in the members' order.
    void add_parts(float* MemberScratch::*part, const std::vector<Range>& shards) {
        for (std::uint32_t t = mine_.begin; t < mine_.end; ++t) {
            for (std::size_t i = 0; i < shards.size(); ++i) {
                if (shards[i].empty()) continue;
                const float* source = context_.scratch.members[i].*part + std::size_t(t) * config_.hidden_size;
                kernels_.add(token(t), source, config_.hidden_size);
            }
        }
    }

    void norm(const std::vector<float>& weight) {
        for (std::uint32_t t = mine_.begin; t < mine_.end; ++t) {
            kernels_.rms_norm(token(t), weight.data(), config_.rms_norm_eps, normed_, t);
        }
        if (!owns_all_tokens()) context_.pool.barrier();
    }

    void rotate_heads(float* rows, std::uint32_t heads, std::uint32_t t) const {
        const std::uint32_t half = config_.head_dim / 2;
        for (std::uint32_t head = 0; head < heads; ++head) {
            kernels_.rope(rows + (std::size_t(t) * heads + head) * config_.head_dim, scratch_.cosine + t * half,
                          scratch_.sine + t * half, half);
        }
    }

    void store_keys_and_values(const Layer& layer, std::uint32_t index) {
        if (heads_.empty()) return;
        const std::uint32_t head_dim = config_.head_dim;
        const std::size_t width = std::size_t(heads_.size()) * head_dim;
        const Range rows{heads_.begin * head_dim, heads_.end * head_dim};
        layer.key.multiply(layer.key.run(rows), normed_, count_, scratch_.key, width);
        layer.value.multiply(layer.value.run(rows), normed_, count_, scratch_.value, width);
        const auto store = batch_.cache->type() == CacheType::f16 ? kernels_.store_f16 : kernels_.store_q8_0;
        for (std::uint32_t t = 0; t < count_; ++t) {
            rotate_heads(scratch_.key, heads_.size(), t);
            for (std::uint32_t head = 0; head < heads_.size(); ++head) {
                const std::size_t at = t * width + head * head_dim;
                store(batch_.cache->head(index, heads_.begin + head), position_ + t, scratch_.key + at,
                      scratch_.value + at);
            }
        }
    }

    void attention(const Layer& layer, std::uint32_t index) {
        if (heads_.empty()) return;
        const std::uint32_t group = config_.query_heads_per_key_value_head();
        const Range rows = Shards::attention_columns(config_, heads_);
        TileRun query = layer.query.run(rows);
        query.next = batch_.cache->head(index, heads_.begin).first_keys();
        layer.query.multiply(query, normed_, count_, scratch_.query, rows.size());
        for (std::uint32_t t = 0; t < count_; ++t) rotate_heads(scratch_.query, heads_.size() * group, t);
        for (std::uint32_t head = 0; head < heads_.size(); ++head) attend_head(index, head);
        for (std::uint32_t t = 0; t < count_; ++t) kernels_.quantise(attended_, t);
        layer.attention_output.multiply(layer.attention_output.run_all(member_), attended_, count_,
                                        scratch_.attention_out, config_.hidden_size);
    }

    // All query heads of all tokens over one KV head, kAttendRows of them at a time.
    void attend_head(std::uint32_t layer, std::uint32_t head) {
        const std::uint32_t group = config_.query_heads_per_key_value_head();
        const std::uint32_t head_dim = config_.head_dim;
        const float scale = 1.0f / std::sqrt(float(head_dim));
        alignas(64) float queries[kAttendRows * 256];
        alignas(64) float out[kAttendRows * 256];
        std::uint32_t limits[kAttendRows];
        AttendTask task;
        task.cache = batch_.cache->head(layer, heads_.begin + head);
        task.queries = queries;
        task.limits = limits;
        task.out = out;
        const bool last_head = head + 1 == heads_.size();
        task.next_keys = batch_.cache->head(layer, heads_.begin + (last_head ? head : head + 1)).first_keys();
        const auto attend = batch_.cache->type() == CacheType::f16 ? kernels_.attend_f16 : kernels_.attend_q8_0;
        const auto row_offset = [&](std::uint32_t row) {
            return row / group * attended_.stride + (head * group + row % group) * head_dim;
        };
        const std::uint32_t row_count = count_ * group;
        for (std::uint32_t first = 0; first < row_count; first += kAttendRows) {
            task.rows = std::min(kAttendRows, row_count - first);
            for (std::uint32_t r = 0; r < task.rows; ++r) {
                const float* query = scratch_.query + row_offset(first + r);
                for (std::uint32_t d = 0; d < head_dim; ++d) queries[r * head_dim + d] = query[d] * scale;
                limits[r] = position_ + (first + r) / group + 1;
            }
            attend(task);
            for (std::uint32_t r = 0; r < task.rows; ++r) {
                std::memcpy(attended_.values + row_offset(first + r), out + r * head_dim, head_dim * sizeof(float));
            }
        }
    }

    // Where this member's weights lie that follow an FFN, for the FFN's three matrices to fetch.
    struct Following {
        const std::byte* gate = nullptr;
        const std::byte* up = nullptr;
        const std::byte* down = nullptr;
    };

    Following after(std::uint32_t index) const {
        if (index + 1 == config_.num_hidden_layers) {
            return {context_.weights.output.run(context_.shards.vocabulary[member_]).data, nullptr, nullptr};
        }
        if (heads_.empty()) return {};
        const Layer& layer = context_.weights.layers[index + 1];
        const Range key_rows{heads_.begin * config_.head_dim, heads_.end * config_.head_dim};
        return {layer.query.run(Shards::attention_columns(config_, heads_)).data,
                layer.attention_output.run_all(member_).data, layer.key.run(key_rows).data};
    }

    void ffn(const Layer& layer, const Following& next) {
        if (ffn_columns_.empty()) return;
        const Ffn& shared = context_.weights.ffns[layer.ffn];
        const std::uint32_t width = ffn_columns_.size();
        TileRun gate = shared.gate.run(ffn_columns_);
        TileRun up = shared.up.run(ffn_columns_);
        TileRun down = shared.down.run_all(member_);
        gate.next = next.gate;
        up.next = next.up;
        down.next = next.down;
        shared.gate.multiply(gate, normed_, count_, ffn_.values, width);
        shared.up.multiply(up, normed_, count_, scratch_.up, width);
        if (layer.delta) {
            const FfnDelta& delta = *layer.delta;
            add_delta(delta.gate_a.run_all(), delta.gate_b.run(ffn_columns_), normed_, ffn_.values);
            add_delta(delta.up_a.run_all(), delta.up_b.run(ffn_columns_), normed_, scratch_.up);
        }
        const float* gain = layer.gain.empty() ? nullptr : layer.gain.data() + ffn_columns_.begin;
        for (std::uint32_t t = 0; t < count_; ++t) {
            kernels_.swiglu(ffn_.values + t * ffn_.stride, scratch_.up + std::size_t(t) * width, gain, width);
            kernels_.quantise(ffn_, t);
        }
        shared.down.multiply(down, ffn_, count_, scratch_.ffn_out, config_.hidden_size);
        if (layer.delta) {
            const FfnDelta& delta = *layer.delta;
            add_delta(delta.down_a.run_all(member_), delta.down_b.run_all(), ffn_, scratch_.ffn_out);
        }
    }

    // y += b (a x). Both are linear, so that a member may apply them to its own columns of x alone.
    void add_delta(const TileRun& a, const TileRun& b, const Activations& x, float* y) {
        kernels_.matmul_f16(a, x, count_, scratch_.low_rank.values, scratch_.low_rank.stride);
        kernels_.matmul_f16(b, scratch_.low_rank, count_, scratch_.delta, b.rows);
        kernels_.add(y, scratch_.delta, std::size_t(count_) * b.rows);
    }

    const ForwardContext& context_;
    const ModelConfig& config_;
    const Kernels& kernels_;
    const Batch& batch_;
    const unsigned member_;
    MemberScratch scratch_;
    const Range heads_;
    const Range ffn_columns_;

    // The tokens in hand; narrow_to_wanted() may reduce them to the last one.
    std::uint32_t position_;
    std::uint32_t count_;
    float* hidden_states_ = nullptr;
    Activations normed_;
    Activations attended_;
    Activations ffn_;
    Range mine_;  // the tokens whose residual stream this member keeps
};

}  // namespace

void forward(const ForwardContext& context, const Batch& batch) {
    context.pool.run([&](unsigned member) { MemberPass(context, batch, member).run(); });
}

}  // namespace mobillama
