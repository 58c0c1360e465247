#pragma once

#include <cstddef>
#include <string>

namespace qe {

/**
 * A file mapped read-only. The size is taken once, by fstat on the open descriptor, and every tensor is checked
 * against it; the mapping is private and keeps the inode alive when the file is replaced by rename. A file that
 * is truncated *in place* afterwards still raises SIGBUS on the next read of a lost page: no bound can be checked
 * against a file that shrinks under us, so checkpoints must be replaced, never rewritten in place.
 */
class MappedFile {
 public:
  /** Throws Error(checkpoint) with the file's name when it cannot be opened or mapped. */
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  /** Drops the pages that lie wholly in [begin, end) from memory; they come back when they are read. */
  void forget(std::size_t begin, std::size_t end) const;

  [[nodiscard]] const std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace qe
