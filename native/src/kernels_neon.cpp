// NEON with the dot product of Armv8.2.
#include "isa_neon.h"

namespace mobillama {

const Kernels& neon_kernels() {
    static const Kernels kernels = make_kernels<Neon>("neon");
    return kernels;
}

}  // namespace mobillama
