#pragma once

#include <cstddef>

/** What the fake library noted; fake_cublaslt() gives it out. */
struct FakeCublasLt {
  std::size_t heuristics, products;
  int open;      // objects not yet destroyed
  bool refuses;  // knows no way for any shape
};
