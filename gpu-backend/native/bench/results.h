#pragma once

// Rows of a benchmark: printed as lines of a table, and written as JSON, the whole file again after every row, so that
// a run cut short leaves what it measured. transformers_peer.py adds its own rows to the same file.

#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include "base/error.h"

namespace qe::bench {

struct Row {
  const char* what;
  std::size_t batch, prompt, output;  // sequences; tokens of each
  double value;
  const char* unit;
  double bound;       // the best the machine could do, in the same unit
  const char* by;     // what it is bound by
  bool less = false;  // is better
};

class Results {
 public:
  /** @param head the file's members before its rows */
  Results(std::string file, std::string head) : file_(std::move(file)), head_(std::move(head)) {
    std::printf("%-12s %-12s %5s %6s %6s %12s %-8s %12s %6s  %s\n", "what", "engine", "batch", "prompt", "output",
                "value", "unit", "bound", "share", "bound by");
  }

  void add(const Row& row) {
    const double share = row.less ? row.bound / row.value : row.value / row.bound;
    std::printf("%-12s %-12s %5zu %6zu %6zu %12.5g %-8s %12.5g %6.3f  %s\n", row.what, "qwen2-edge", row.batch,
                row.prompt, row.output, row.value, row.unit, row.bound, share, row.by);
    std::fflush(stdout);
    rows_ += concat(rows_.empty() ? "" : ",\n", R"(  {"what": ")", row.what, R"(", "engine": "qwen2-edge", "batch": )",
                    row.batch, ", \"prompt\": ", row.prompt, ", \"output\": ", row.output, ", \"value\": ", row.value,
                    R"(, "unit": ")", row.unit, R"(", "bound": )", row.bound, R"(, "bound_by": ")", row.by,
                    R"(", "share": )", share, "}");
    if (!(std::ofstream(file_) << "{" << head_ << ",\n \"rows\": [\n" << rows_ << "\n]}\n"))
      throw Error(ErrorCode::internal, "cannot write " + file_);
  }

 private:
  std::string file_, head_, rows_;
};

}  // namespace qe::bench
