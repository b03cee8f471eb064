// Which instruction sets this build has and this processor runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"
#include "result.h"

namespace mobillama {

// Names of the usable instruction sets, best first; "scalar" is always the last.
std::vector<std::string> available_isas();

// The kernels named `isa`; "auto" means the best.
Result<const Kernels*> choose_kernels(const std::string& isa);

}  // namespace mobillama
