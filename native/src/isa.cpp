#include "isa.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(_M_X64) && !defined(__GNUC__)
#include <intrin.h>
#endif

namespace mobillama {
namespace {

struct Candidate {
    const Kernels& (*kernels)();
    bool (*usable)();
};

#if defined(__x86_64__) && defined(__GNUC__)

// F16C, which Clang 14 cannot ask for, came before AVX2 in every processor that has it.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

#elif defined(_M_X64)

// The bits of CPUID leaves 1 and 7, and of XCR0: the operating system must save the wide registers as well.
bool bits(int leaf, int reg, int mask) {
    int registers[4];
    __cpuidex(registers, leaf, 0);
    return (registers[reg] & mask) == mask;
}

bool saves_registers(unsigned long long mask) {
    return bits(1, 2, 1 << 27) && (_xgetbv(0) & mask) == mask;
}

bool has_avx2() {
    return saves_registers(0x6) && bits(1, 2, (1 << 12) | (1 << 29)) && bits(7, 1, 1 << 5);
}

bool has_avx512vnni() {
    const int f_dq_bw_vl = int((1u << 16) | (1u << 17) | (1u << 30) | (1u << 31));
    return has_avx2() && saves_registers(0xe6) && bits(7, 1, f_dq_bw_vl) && bits(7, 2, 1 << 11);
}

#elif defined(__aarch64__) && defined(__linux__)

bool has_dot_product() {
    constexpr unsigned long kAsimdDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & kAsimdDotProduct) != 0;
}

bool has_matrix_product() {
    constexpr unsigned long kI8mm = 1ul << 13;  // HWCAP2_I8MM
    return has_dot_product() && (getauxval(AT_HWCAP2) & kI8mm) != 0;
}

#elif defined(__aarch64__) && defined(__APPLE__)

bool has_dot_product() { return true; }  // every Apple processor that runs macOS has it

bool has_matrix_product() {  // from the M2 on
    int found = 0;
    std::size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &size, nullptr, 0) == 0 && found != 0;
}

#endif

const std::vector<Candidate>& candidates() {
    static const std::vector<Candidate> list = {
#if defined(__x86_64__) || defined(_M_X64)
        {avx512vnni_kernels, has_avx512vnni},
        {avx2_kernels, has_avx2},
#elif defined(__aarch64__)
        {neon_i8mm_kernels, has_matrix_product},
        {neon_kernels, has_dot_product},
#endif
        {scalar_kernels, [] { return true; }},
    };
    return list;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates()) {
        if (candidate.usable()) names.emplace_back(candidate.kernels().name);
    }
    return names;
}

Result<const Kernels*> choose_kernels(const std::string& isa) {
    std::string usable;
    for (const Candidate& candidate : candidates()) {
        if (!candidate.usable()) continue;
        const Kernels& kernels = candidate.kernels();
        if (isa == "auto" || isa == kernels.name) return &kernels;
        usable += std::string(usable.empty() ? "" : ", ") + kernels.name;
    }
    return Error{"isa '" + isa + "' is not usable on this processor; these are: auto, " + usable};
}

}  // namespace mobillama
