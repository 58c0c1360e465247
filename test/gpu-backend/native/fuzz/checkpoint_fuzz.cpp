// Fuzzes the checkpoint reader under sanitizers: tensor tables that lie, over files of random bytes.
//
//   cmake --preset asan-ubsan && cmake --build --preset asan-ubsan --target qe_fuzz
//   build-asan-ubsan/qe_fuzz ../../test/gpu-backend/native/fuzz/corpus 600        # seconds
//
// A case is a text file: the size of the weights' file, then a line for each tensor: name, dtype, file, begin, end,
// dims. Each round takes one from the corpus and changes it; whatever is accepted is then read whole, as the model
// would. What must hold: an Error with one line, or numbers that all lie inside the file. A sanitizer's report or any
// other exception ends the run; the case stands in fuzz-last.txt, written before it is tried.

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

#include "base/error.h"
#include "checkpoint/int4.h"

namespace {

using namespace qe;

struct Case {
  std::uint64_t size = 0;
  std::vector<TableEntry> table;
};

Case read_case(const std::filesystem::path& path) {
  Case read;
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  read.size = std::stoull(line);
  while (std::getline(file, line)) {
    std::istringstream words(line);
    TableEntry entry;
    words >> entry.name >> entry.dtype >> entry.file >> entry.begin >> entry.end;
    for (std::uint64_t dim; words >> dim;) entry.shape.push_back(dim);
    read.table.push_back(std::move(entry));
  }
  return read;
}

void write_case(const Case& written, const std::filesystem::path& path) {
  std::ofstream file(path);
  file << written.size << "\n";
  for (const TableEntry& entry : written.table) {
    file << entry.name << " " << entry.dtype << " " << entry.file << " " << entry.begin << " " << entry.end;
    for (const std::uint64_t dim : entry.shape) file << " " << dim;
    file << "\n";
  }
}

class Fuzzer {
 public:
  explicit Fuzzer(unsigned seed) : random_(seed) {}

  Case changed(Case from) {
    for (std::uint64_t changes = 1 + random_() % 4; changes > 0; --changes) change(from);
    return from;
  }

 private:
  /** Sizes that break sums and products. */
  std::uint64_t number(std::uint64_t near) {
    switch (random_() % 6) {
      case 0:
        return near + random_() % 5 - 2;
      case 1:
        return std::uint64_t{1} << random_() % 64;
      case 2:
        return ~std::uint64_t{0} - random_() % 4;
      case 3:
        return 0;
      case 4:
        return near * (random_() % 4);
      default:
        return random_() % 5000;
    }
  }
  void change(Case& from) {
    static constexpr const char* kDtypes[] = {"F32", "F16", "BF16", "I32", "I64", "U8", "F8_E4M3", "Q4", ""};
    if (from.table.empty() || random_() % 12 == 0) {
      from.size = 1 + random_() % 20000;
      return;
    }
    TableEntry& entry = from.table[random_() % from.table.size()];
    switch (random_() % 8) {
      case 0:
        entry.begin = number(entry.begin);
        break;
      case 1:
        entry.end = number(entry.end);
        break;
      case 2:
        entry.dtype = kDtypes[random_() % std::size(kDtypes)];
        break;
      case 3:
        entry.file = number(entry.file);
        break;
      case 4:
        if (!entry.shape.empty()) entry.shape[random_() % entry.shape.size()] = number(entry.shape[0]);
        break;
      case 5:
        entry.shape.push_back(number(1));
        break;
      case 6:
        from.table.push_back(from.table[random_() % from.table.size()]);
        break;
      default: {  // moved, unaligned, its length kept: most of these are accepted
        const std::uint64_t length = entry.end - entry.begin;
        entry.begin = random_() % 4000;
        entry.end = entry.begin + length;
      }
    }
  }

  std::mt19937_64 random_;
};

/** Everything that was read, so that no compiler leaves a read out. */
volatile unsigned sink = 0;

/** @returns whether it was accepted */
bool try_case(const Case& tried, const std::string& weights) {
  try {
    const Checkpoint checkpoint({weights}, tried.table);
    unsigned read = 0;
    for (const TableEntry& entry : tried.table) {
      const std::vector<std::size_t> shape(entry.shape.begin(), entry.shape.end());
      try {
        if (entry.dtype == "I32") {
          for (const std::uint32_t word : checkpoint.words(entry.name, shape)) read ^= word;
        } else {
          const TensorView view = checkpoint.tensor(entry.name, shape);
          const std::vector<std::byte> copy(view.data, view.data + view.bytes());
          for (const std::byte byte : copy) read ^= static_cast<unsigned>(byte);
        }
      } catch (const Error&) {
      }
    }
    for (const auto format : {WeightFormat::gptq, WeightFormat::awq}) {
      try {
        read_int4(checkpoint, "q.", format, 16, 64, 32);
      } catch (const Error&) {
      }
    }
    sink = read;
    return true;
  } catch (const Error& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) throw std::runtime_error("more than one line");
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "qe_fuzz CORPUS SECONDS [SEED]\n"), 2;
  std::vector<Case> corpus;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) corpus.push_back(read_case(entry.path()));
  const unsigned seed = argc > 3 ? static_cast<unsigned>(std::stoul(argv[3])) : std::random_device{}();
  const std::string weights = std::filesystem::temp_directory_path() / ("qe-fuzz-" + std::to_string(seed));
  Fuzzer fuzzer(seed);
  std::mt19937_64 random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::stoul(argv[2]));
  std::uint64_t rounds = 0, accepted = 0;
  while (std::chrono::steady_clock::now() < end) {
    const Case tried = fuzzer.changed(corpus[random() % corpus.size()]);
    std::string bytes(std::min<std::uint64_t>(tried.size, 20000), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % 64);  // most floats of it are finite
    std::ofstream(weights, std::ios::binary) << bytes;
    write_case(tried, "fuzz-last.txt");
    accepted += try_case(tried, weights);
    ++rounds;
  }
  std::filesystem::remove(weights);
  std::filesystem::remove("fuzz-last.txt");
  std::printf("%llu cases, %llu accepted, seed %u\n", static_cast<unsigned long long>(rounds),
              static_cast<unsigned long long>(accepted), seed);
  return 0;
}
