// Writes real files as a fuzzing corpus: fuzz_seeds FOLDER
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tiny_file.h"

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
        return 2;
    }
    std::filesystem::create_directories(argv[1]);
    int index = 0;
    for (const auto& bytes : tiny::samples()) {
        const auto path = std::filesystem::path(argv[1]) / ("seed-" + std::to_string(index++) + ".gguf");
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
    }
    return 0;
}
