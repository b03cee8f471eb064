// Errors travel as values: nothing in the core throws, so nothing has to be caught at the binding.
#pragma once

#include <cassert>
#include <string>
#include <utility>
#include <variant>

namespace mobillama {

// What went wrong, as one line for a person: what, where, and what was expected.
struct Error {
    std::string message;
};

// A value, or the reason why there is none. (std::expected needs C++23.)
template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    explicit operator bool() const { return state_.index() == 0; }
    T& operator*() { return std::get<0>(state_); }
    const T& operator*() const { return std::get<0>(state_); }
    T* operator->() { return &std::get<0>(state_); }
    const T* operator->() const { return &std::get<0>(state_); }
    const Error& error() const { return std::get<1>(state_); }

private:
    std::variant<T, Error> state_;
};

struct Done {};
using Status = Result<Done>;

}  // namespace mobillama

#define MOBILLAMA_CONCAT_(a, b) a##b
#define MOBILLAMA_CONCAT(a, b) MOBILLAMA_CONCAT_(a, b)

// TRY(expression): leave the function with the expression's error, if it has one.
#define TRY(expression)                                      \
    do {                                                     \
        auto try_result = (expression);                      \
        if (!try_result) return ::mobillama::Error(try_result.error()); \
    } while (false)

// TRY_ASSIGN(target, expression): as TRY, and otherwise assign the value to `target`.
#define TRY_ASSIGN(target, expression) \
    TRY_ASSIGN_(MOBILLAMA_CONCAT(try_result_, __LINE__), target, expression)
#define TRY_ASSIGN_(result, target, expression)               \
    auto result = (expression);                               \
    if (!result) return ::mobillama::Error(result.error());   \
    target = std::move(*result)
