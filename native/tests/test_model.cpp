// Loading, evaluating, saving: whole models of a few kilobytes, on one and on several threads.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "check.h"
#include "session.h"
#include "tiny_file.h"

using namespace mobillama;

namespace {

class TemporaryFile {
public:
    explicit TemporaryFile(const std::vector<std::byte>& bytes) {
        static int count = 0;
        path_ = (std::filesystem::temp_directory_path() /
                 ("mobillama-test-" + std::to_string(std::uintptr_t(this)) + "-" + std::to_string(count++)))
                    .string();
        std::ofstream(path_, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
    }
    ~TemporaryFile() { std::filesystem::remove(path_); }
    const std::string& path() const { return path_; }

private:
    std::string path_;
};

std::shared_ptr<Model> open(const std::string& path, unsigned threads, CacheType type = CacheType::q8_0) {
    ModelOptions options;
    options.threads = threads;
    options.cache_type = type;
    auto model = Model::open(path, options);
    if (!model) std::printf("%s\n", model.error().message.c_str());
    CHECK(bool(model));
    return *model;
}

std::vector<std::int32_t> some_tokens(std::size_t count) {
    std::vector<std::int32_t> tokens(count);
    for (std::size_t i = 0; i < count; ++i) tokens[i] = std::int32_t(i * 7 % 20);
    return tokens;
}

std::vector<float> evaluate(Session& session, std::span<const std::int32_t> tokens) {
    std::vector<float> logits(tokens.size() * session.config().vocab_size);
    CHECK(bool(session.forward(tokens, true, logits)));
    return logits;
}

TEST(every_kind_of_file_gives_finite_logits_that_do_not_depend_on_the_batch) {
    for (const auto& bytes : tiny::samples()) {
        const TemporaryFile file(bytes);
        for (const unsigned threads : {1u, 3u}) {
            for (const CacheType type : {CacheType::f16, CacheType::q8_0}) {
                const auto model = open(file.path(), threads, type);
                const auto tokens = some_tokens(70);
                Session whole(model);
                const std::vector<float> expected = evaluate(whole, tokens);
                for (const float logit : expected) CHECK(std::isfinite(logit));
                Session split(model);
                evaluate(split, std::span(tokens).first(66));
                const std::vector<float> rest = evaluate(split, std::span(tokens).subspan(66));
                CHECK(std::equal(rest.begin(), rest.end(), expected.end() - std::ptrdiff_t(rest.size())));
            }
        }
    }
}

TEST(sessions_on_several_threads_do_not_disturb_each_other) {
    const TemporaryFile file(tiny::File({}).bytes());
    const auto model = open(file.path(), 2);
    const auto tokens = some_tokens(20);
    Session alone(model);
    const std::vector<float> expected = evaluate(alone, tokens);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
        threads.emplace_back([&] {
            for (int repeat = 0; repeat < 5; ++repeat) {
                Session session(model);
                if (evaluate(session, tokens) != expected) ++check::failures;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

TEST(a_saved_prefix_continues_as_if_it_had_been_evaluated) {
    const TemporaryFile file(tiny::File({}).bytes());
    for (const CacheType type : {CacheType::f16, CacheType::q8_0}) {
        const auto model = open(file.path(), 2, type);
        const auto tokens = some_tokens(280);
        Session first(model);
        evaluate(first, std::span(tokens).first(270));
        const TemporaryFile saved({});
        CHECK(bool(first.save(saved.path())));
        Session second(model);
        CHECK(bool(second.load(saved.path())));
        CHECK(second.position() == 270);
        CHECK(evaluate(second, std::span(tokens).subspan(270)) == evaluate(first, std::span(tokens).subspan(270)));
    }
}

TEST(a_prefix_of_another_model_or_a_damaged_one_is_refused) {
    const TemporaryFile file(tiny::File({}).bytes());
    auto bytes = tiny::File({}).bytes();
    bytes.back() ^= std::byte{1};  // padding is no part of the model; the byte before it may be
    bytes[bytes.size() - 40] ^= std::byte{1};
    const TemporaryFile other(bytes);
    Session session(open(file.path(), 1));
    evaluate(session, some_tokens(5));
    const TemporaryFile saved({});
    CHECK(bool(session.save(saved.path())));
    Session stranger(open(other.path(), 1));
    const Status refused = stranger.load(saved.path());
    CHECK(!refused);
    if (!refused) CHECK_CONTAINS(refused.error().message, "another model");
    {
        std::fstream damage(saved.path(), std::ios::in | std::ios::out | std::ios::binary);
        damage.seekp(100);
        damage.put('\x55');
    }
    CHECK(!session.load(saved.path()));
    CHECK(session.position() == 0);
    std::filesystem::resize_file(saved.path(), 90);
    CHECK(!session.load(saved.path()));
}

TEST(a_full_context_and_unknown_tokens_are_errors) {
    const TemporaryFile file(tiny::File({}).bytes());
    Session session(open(file.path(), 2));
    std::vector<float> logits(20);
    CHECK(!session.forward(some_tokens(301), false, logits));
    const std::vector<std::int32_t> unknown = {1, 20};
    CHECK(!session.forward(unknown, false, logits));
    CHECK(session.position() == 0);
    evaluate(session, some_tokens(300));
    CHECK(!session.forward(some_tokens(1), false, logits));
    CHECK(bool(session.truncate(299)));
    CHECK(bool(session.forward(some_tokens(1), false, logits)));
    CHECK(!session.truncate(301));
}

TEST(a_barrier_holds_everyone_until_all_have_come) {
    ThreadPool pool(4, false);
    std::vector<int> written(4);
    for (int round = 1; round <= 200; ++round) {
        pool.run([&](unsigned member) {
            written[member] = round;
            pool.barrier();
            for (const int value : written) {
                if (value != round) ++check::failures;
            }
            pool.barrier();
        });
    }
}

}  // namespace

int main() { return check::run_all(); }
