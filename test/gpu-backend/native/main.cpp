#include <chrono>

#include "check.h"

int main(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    bool wanted = argc < 2 && !test.name.starts_with("soak: ");  // those take minutes and are asked for by name
    for (int i = 1; i < argc; ++i) wanted = wanted || test.name.find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    const auto start = std::chrono::steady_clock::now();
    const std::string failure = check::thrown(test.body);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    ++(failure.empty() ? passed : failed);
    std::printf("%s %s (%.0f ms)%s%s\n", failure.empty() ? "ok  " : "FAIL", test.name.c_str(), took.count(),
                failure.empty() ? "" : "\n     ", failure.c_str());
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
