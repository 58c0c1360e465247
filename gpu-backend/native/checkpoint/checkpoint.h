#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "checkpoint/mapped_file.h"
#include "checkpoint/tensor.h"

namespace qe {

/** One row of the tensor table that TypeScript reads from the safetensors headers; nothing in it is trusted. */
struct TableEntry {
  std::string name;
  std::string dtype;  // as the header says it: "BF16", "F16", "F32", ...
  std::vector<std::uint64_t> shape;
  std::size_t file = 0;              // index into the list of files
  std::uint64_t begin = 0, end = 0;  // bytes from the start of the file
};

/**
 * Weights on disk, mapped and checked: every range lies inside its file, matches dtype and shape, and overlaps no
 * other. Every complaint is one line that names file, tensor and what is wrong.
 */
class Checkpoint {
 public:
  Checkpoint(const std::vector<std::string>& files, const std::vector<TableEntry>& table);

  /** The tensor of that name with exactly that shape and a dtype we compute with, free of NaN and infinity. */
  [[nodiscard]] TensorView tensor(const std::string& name, const std::vector<std::size_t>& shape) const;
  /** Packed 32-bit words (dtype I32) of exactly that shape, copied out. */
  [[nodiscard]] std::vector<std::uint32_t> words(const std::string& name, const std::vector<std::size_t>& shape) const;
  /** Gives back the memory of a tensor that was copied elsewhere; views of it are no longer good. */
  void forget(const std::string& name) const;
  /** Gives back a tensor's pages, which are read again when somebody touches them. */
  void release_pages(const std::string& name) const;
  [[nodiscard]] bool has(const std::string& name) const { return entries_.contains(name); }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  [[nodiscard]] const TableEntry& find(const std::string& name, const std::vector<std::size_t>& shape) const;

  std::vector<MappedFile> files_;
  std::unordered_map<std::string, TableEntry> entries_;
  // Copies of tensors that the file leaves unaligned, by name.
  mutable std::unordered_map<std::string, std::unique_ptr<std::byte[]>> realigned_;
  mutable std::unordered_set<std::string> finite_;  // tensors that were scanned: a tied one is asked for twice
  std::size_t bytes_ = 0;
};

/** Whether `count` stored numbers are all finite. */
bool all_finite(const std::byte* data, DType dtype, std::size_t count);

}  // namespace qe
