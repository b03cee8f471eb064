// The smallest test runner that serves: TEST(name) { CHECK(...); } and a main that runs them all.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace check {

struct Test {
    const char* name;
    void (*run)();
};

inline std::vector<Test>& tests() {
    static std::vector<Test> list;
    return list;
}

inline int failures = 0;

struct Registration {
    Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline int run_all() {
    for (const Test& test : tests()) {
        const int before = failures;
        test.run();
        std::printf("%s  %s\n", failures == before ? "ok  " : "FAIL", test.name);
    }
    return failures == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                    \
    static void test_##name();                                        \
    static const check::Registration registration_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                                           \
    do {                                                                           \
        if (!(condition)) {                                                        \
            ++check::failures;                                                     \
            std::printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
        }                                                                          \
    } while (false)

#define CHECK_CONTAINS(text, part)                                                             \
    do {                                                                                       \
        const std::string check_text = (text);                                                 \
        if (check_text.find(part) == std::string::npos) {                                      \
            ++check::failures;                                                                 \
            std::printf("%s:%d: '%s' does not contain '%s'\n", __FILE__, __LINE__, check_text.c_str(), part); \
        }                                                                                      \
    } while (false)
