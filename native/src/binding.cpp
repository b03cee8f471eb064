// The Python extension `mobillama.engine._native`. The only place that throws, because Python wants exceptions.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <string>

#include "isa.h"
#include "model.h"
#include "session.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mobillama {
namespace {

using Tokens = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Embeddings = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<nb::numpy, float>;

[[noreturn]] void raise(const Error& error) { throw nb::value_error(error.message.c_str()); }

template <class T>
T unwrap(Result<T> result) {
    if (!result) raise(result.error());
    return std::move(*result);
}

// Metadata is bytes from an untrusted file: what is not UTF-8 becomes replacement characters.
nb::object to_python(std::string_view text) {
    return nb::steal(PyUnicode_DecodeUTF8(text.data(), Py_ssize_t(text.size()), "replace"));
}

template <class T>
nb::list numbers(const gguf::Array& array) {
    nb::list list;
    for (std::uint64_t i = 0; i < array.count; ++i) {
        T value;
        std::memcpy(&value, array.raw.data() + i * sizeof(T), sizeof(T));
        list.append(nb::cast(value));
    }
    return list;
}

nb::list booleans(const gguf::Array& array) {
    nb::list list;
    for (const std::byte value : array.raw) list.append(nb::bool_(value != std::byte{0}));
    return list;
}

nb::object to_python(const gguf::Array& array) {
    using gguf::ValueType;
    switch (array.element_type) {
        case ValueType::uint8: return numbers<std::uint8_t>(array);
        case ValueType::int8: return numbers<std::int8_t>(array);
        case ValueType::uint16: return numbers<std::uint16_t>(array);
        case ValueType::int16: return numbers<std::int16_t>(array);
        case ValueType::uint32: return numbers<std::uint32_t>(array);
        case ValueType::int32: return numbers<std::int32_t>(array);
        case ValueType::uint64: return numbers<std::uint64_t>(array);
        case ValueType::int64: return numbers<std::int64_t>(array);
        case ValueType::float32: return numbers<float>(array);
        case ValueType::float64: return numbers<double>(array);
        case ValueType::boolean: return booleans(array);
        case ValueType::string: {
            nb::list list;
            for (const std::string_view text : array.strings) list.append(to_python(text));
            return list;
        }
        case ValueType::array: break;
    }
    return nb::none();
}

nb::dict metadata(const Model& model) {
    nb::dict dict;
    for (const auto& [key, value] : model.file().metadata) {
        dict[to_python(key)] = std::visit(
            [](const auto& held) -> nb::object {
                using T = std::decay_t<decltype(held)>;
                if constexpr (std::is_same_v<T, std::string_view> || std::is_same_v<T, gguf::Array>) {
                    return to_python(held);
                } else {
                    return nb::cast(held);
                }
            },
            value);
    }
    return dict;
}

nb::dict config(const Model& model) {
    const ModelConfig& c = model.config();
    nb::dict dict;
    dict["vocab_size"] = c.vocab_size;
    dict["hidden_size"] = c.hidden_size;
    dict["intermediate_size"] = c.intermediate_size;
    dict["num_hidden_layers"] = c.num_hidden_layers;
    dict["num_attention_heads"] = c.num_attention_heads;
    dict["num_key_value_heads"] = c.num_key_value_heads;
    dict["head_dim"] = c.head_dim;
    dict["context_length"] = c.context_length;
    dict["ffn_delta_rank"] = c.ffn_delta_rank;
    dict["ffn_of_layer"] = nb::cast(c.ffn_of_layer);
    dict["rms_norm_eps"] = c.rms_norm_eps;
    dict["rope_theta"] = c.rope_theta;
    return dict;
}

nb::dict memory(const Model& model) {
    const MemoryUse use = model.memory();
    nb::dict dict;
    dict["weights_bytes"] = use.weights_bytes;
    dict["kv_bytes"] = use.full_cache_bytes;
    dict["scratch_bytes"] = use.scratch_bytes;
    return dict;
}

std::shared_ptr<Model> open_model(const std::string& path, unsigned threads, const std::string& kv_type,
                                  std::optional<std::uint32_t> context, const std::string& isa, bool pin) {
    ModelOptions options;
    options.threads = threads;
    options.isa = isa;
    options.pin = pin;
    if (context.has_value()) {
        if (*context == 0) throw nb::value_error("context is 0; it must be at least 1");
        options.context_length = *context;
    }
    if (kv_type == "f16") {
        options.cache_type = CacheType::f16;
    } else if (kv_type == "q8_0") {
        options.cache_type = CacheType::q8_0;
    } else {
        throw nb::value_error(("kv_type '" + kv_type + "' is unknown; these are: f16, q8_0").c_str());
    }
    Result<std::shared_ptr<Model>> model = [&] {
        const nb::gil_scoped_release release;
        return Model::open(path, options);
    }();
    return unwrap(std::move(model));
}

// Memory for `count` floats that the array owns.
FloatArray new_array(std::initializer_list<std::size_t> shape) {
    std::size_t count = 1;
    for (const std::size_t size : shape) count *= size;
    auto* data = new float[count];
    const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return FloatArray(data, shape, owner);
}

// Run `evaluate(logits)` without the GIL and return the logits, (vocab_size,) or (count, vocab_size).
template <class Evaluate>
FloatArray with_logits(const Session& session, std::size_t count, bool all_logits, Evaluate evaluate) {
    const std::size_t vocab_size = session.config().vocab_size;
    // More tokens than the context holds are refused below; do not allocate for them.
    const std::size_t rows = std::min<std::size_t>(count, session.config().context_length);
    FloatArray logits = all_logits ? new_array({rows, vocab_size}) : new_array({vocab_size});
    Status status = Done{};
    {
        const nb::gil_scoped_release release;
        status = evaluate(std::span<float>(logits.data(), logits.size()));
    }
    if (!status) raise(status.error());
    return logits;
}

FloatArray evaluate_tokens(Session& session, const Tokens& tokens, bool all_logits) {
    return with_logits(session, tokens.size(), all_logits, [&](std::span<float> logits) {
        return session.forward({tokens.data(), tokens.size()}, all_logits, logits);
    });
}

FloatArray evaluate_embeddings(Session& session, const Embeddings& embeddings, bool all_logits) {
    if (embeddings.shape(1) != session.config().hidden_size) {
        throw nb::value_error(("embeddings have " + std::to_string(embeddings.shape(1)) +
                               " columns; the model's hidden_size is " + std::to_string(session.config().hidden_size))
                                  .c_str());
    }
    return with_logits(session, embeddings.shape(0), all_logits, [&](std::span<float> logits) {
        return session.forward_embeddings({embeddings.data(), embeddings.size()}, all_logits, logits);
    });
}

}  // namespace
}  // namespace mobillama

NB_MODULE(_native, m) {
    using namespace mobillama;
    m.doc() = "The on-device engine's compiled core; use it through mobillama.engine.native.";
    m.def("available_isas", &available_isas, "Instruction sets that this processor runs, best first.");

    nb::class_<Model>(m, "Model")
        .def(nb::new_(&open_model), "path"_a, nb::kw_only(), "threads"_a = 2, "kv_type"_a = "q8_0",
             "context"_a = nb::none(), "isa"_a = "auto", "pin"_a = false)
        .def_prop_ro("config", &config)
        .def_prop_ro("metadata", &metadata)
        .def_prop_ro("memory", &memory)
        .def_prop_ro("isa", &Model::isa)
        .def_prop_ro("threads", &Model::threads)
        .def("session", [](std::shared_ptr<Model> model) { return std::make_shared<Session>(std::move(model)); });

    nb::class_<Session>(m, "Session")
        .def_prop_ro("position", &Session::position)
        .def_prop_ro("context_length", [](const Session& s) { return s.config().context_length; })
        .def_prop_ro("vocab_size", [](const Session& s) { return s.config().vocab_size; })
        .def_prop_ro("kv_bytes", &Session::cache_bytes)
        .def("forward", &evaluate_tokens, "tokens"_a, "all_logits"_a = false)
        .def("forward_embeddings", &evaluate_embeddings, "embeddings"_a, "all_logits"_a = false)
        .def("truncate", [](Session& s, std::uint32_t position) { unwrap(s.truncate(position)); }, "position"_a)
        .def("save", [](const Session& s, const std::string& path) { unwrap(s.save(path)); }, "path"_a)
        .def("load", [](Session& s, const std::string& path) { unwrap(s.load(path)); }, "path"_a);
}
