// The CPU kernels without Python, for machines that only an emulator offers (tools/aarch64.sh): compares the noise with
// the golden files, bit by bit, and prints a fingerprint of every kernel's output over element types, losses and odd
// sizes. Two builds agree if they print the same lines.
//
// usage: native_check GOLDEN_FOLDER, the folder of philox4x32_10.txt and normals.txt
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "philox.h"
#include "thread_pool.h"

namespace {

using namespace fastdc;
namespace kernels = cpu_baseline;

constexpr int64_t kImages = 3, kClasses = 4, kDraws = 5;

// The lines of a golden file, without comments, as words.
std::vector<std::vector<std::string>> golden(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::vector<std::string>> lines;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    lines.emplace_back();
    for (std::string word; words >> word;) lines.back().push_back(word);
  }
  if (lines.empty()) {
    std::fprintf(stderr, "%s: expected golden values, got none\n", path.c_str());
    std::exit(2);
  }
  return lines;
}

uint64_t hexadecimal(const std::string& text) { return std::strtoull(text.c_str(), nullptr, 16); }

std::vector<float> normals(std::vector<int64_t> streams, std::vector<int32_t> draws, int64_t size, uint64_t seed,
                           uint32_t purpose) {
  std::vector<float> out(streams.size() * static_cast<size_t>(size));
  kernels::philox_normal(streams.data(), draws.data(), static_cast<int64_t>(streams.size()), size, seed, purpose,
                         out.data(), nullptr);
  return out;
}

int wrong_words(const std::string& folder) {
  int wrong = 0;
  for (const auto& line : golden(folder + "/philox4x32_10.txt")) {
    uint64_t words[4];
    for (size_t i = 0; i < 4; ++i) words[i] = hexadecimal(line[i]);
    philox4x32_10(words[0], words[1], words[2], words[3],
                  PhiloxKey{static_cast<uint32_t>(hexadecimal(line[4])), static_cast<uint32_t>(hexadecimal(line[5]))});
    for (size_t i = 0; i < 4; ++i) wrong += static_cast<uint32_t>(words[i]) != hexadecimal(line[6 + i]);
  }
  return wrong;
}

int wrong_normals(const std::string& folder) {
  int wrong = 0;
  for (const auto& line : golden(folder + "/normals.txt")) {
    const int64_t element = std::atoll(line[4].c_str());
    const auto made =
        normals({static_cast<int64_t>(hexadecimal(line[1]))}, {static_cast<int32_t>(std::atoll(line[2].c_str()))},
                element + 1, hexadecimal(line[0]), static_cast<uint32_t>(std::atoll(line[3].c_str())));
    wrong += float_to_bits(made.back()) != hexadecimal(line[5]);
  }
  return wrong;
}

// Prints FNV-1a of the bytes.
template <class T>
void print(const std::string& name, const std::vector<T>& values) {
  uint64_t hash = 0xCBF29CE484222325u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001B3u;
  std::printf("%-40s %016" PRIx64 "\n", name.c_str(), hash);
}

void print_kernels(int64_t size, DType dtype, const char* dtype_name) {
  const std::vector<int64_t> streams = {0, (int64_t{1} << 56) - 1, 12345};
  const auto images = normals({7, 8, 9}, {0, 0, 0}, size, 3, 1);
  const auto target = normals({17, 18, 19}, {0, 0, 0}, size, 3, 1);
  std::vector<CoefficientRow> rows;
  for (int j = 0; j < kDraws; ++j) {
    const float level = 0.17f + 0.31f * static_cast<float>(j);
    rows.push_back({1.0f / (1.0f + level), level, -level, 0.9f, 0.3f * level, 0.7f, 1.0f / level, level});
  }
  std::vector<Cell> cells;
  for (int32_t i = 0; i < kImages; ++i) {
    for (int32_t j = 0; j < kDraws; ++j) {
      for (int32_t k = 0; k < kClasses; ++k) cells.push_back({i, k, j});
    }
  }
  const Step step{images.data(),
                  kImages,
                  size,
                  cells.data(),
                  static_cast<int64_t>(cells.size()),
                  rows.data(),
                  kDraws,
                  kClasses,
                  streams.data(),
                  0x0123456789ABCDEFu,
                  5,
                  0};
  const std::string name = "size " + std::to_string(size) + " " + dtype_name + " ";
  std::vector<uint32_t> noisy(cells.size() * static_cast<size_t>(size));  // room for the widest type
  std::vector<float> timestep(cells.size());
  std::vector<int64_t> labels(cells.size());
  kernels::add_noise(step, dtype, noisy.data(), timestep.data(), labels.data(), nullptr);
  print(name + "add_noise", noisy);
  print(name + "timestep", timestep);
  const std::pair<ErrorForm, const char*> forms[] = {{{Loss::kL2, 0.0f}, "l2"},
                                                     {{Loss::kL1, 0.0f}, "l1"},
                                                     {{Loss::kHuber, 0.5f}, "huber"},
                                                     {{Loss::kResidual, 0.0f}, "residual"}};
  for (const auto& [form, form_name] : forms) {
    for (const float* z : {static_cast<const float*>(nullptr), target.data()}) {
      const std::string what = name + form_name + (z == nullptr ? "" : " target");
      std::vector<float> errors(cells.size());
      kernels::denoising_error(step, form, dtype, noisy.data(), z, errors.data(), nullptr);
      print(what + " error", errors);
      std::vector<float> maps(static_cast<size_t>(kImages * kClasses * size));
      kernels::error_map(step, form, dtype, noisy.data(), z, maps.data(), nullptr);
      print(what + " map", maps);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: native_check GOLDEN_FOLDER\n");
    return 2;
  }
  set_num_threads(2);
  const int words = wrong_words(argv[1]), values = wrong_normals(argv[1]);
  std::printf("wrong words %d, wrong normals %d\n", words, values);
  for (const int64_t size : {1, 63, 1024, 3075}) {
    print("size " + std::to_string(size) + " philox_normal",
          normals({1, 2, 3}, {4, 5, 6}, size, 0xFEDCBA9876543210u, 2));
    print_kernels(size, DType::kFloat32, "float32");
    print_kernels(size, DType::kFloat16, "float16");
    print_kernels(size, DType::kBFloat16, "bfloat16");
  }
  return words + values == 0 ? 0 : 1;
}
