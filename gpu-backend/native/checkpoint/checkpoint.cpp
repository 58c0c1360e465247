#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace qe {
namespace {

[[noreturn]] void refuse(const std::string& file, const std::string& tensor, const std::string& what) {
  throw Error(ErrorCode::checkpoint, concat(file, ": tensor ", tensor, ": ", what));
}

std::string show(const auto& shape) {
  std::string text = "[";
  for (const auto dim : shape) text += concat(text.size() > 1 ? ", " : "", dim);
  return text + "]";
}

/** Bytes per element of every dtype safetensors knows, 0 for a name it does not. */
std::uint64_t element_bytes(std::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2") return 1;
  return 0;
}

void check_range(const MappedFile& file, const TableEntry& entry) {
  const std::uint64_t each = element_bytes(entry.dtype);
  if (each == 0) refuse(file.path(), entry.name, concat("unknown dtype ", entry.dtype));
  std::uint64_t bytes = each;
  for (const std::uint64_t dim : entry.shape) {
    if (dim != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / dim)
      refuse(file.path(), entry.name, concat("shape ", show(entry.shape), " overflows"));
    bytes *= dim;
  }
  if (entry.begin > entry.end)
    refuse(file.path(), entry.name, concat("begins at ", entry.begin, ", after its end ", entry.end));
  if (entry.end > file.size())
    refuse(file.path(), entry.name,
           concat("ends at byte ", entry.end, " of a file of ", file.size(), " bytes (truncated?)"));
  if (entry.end - entry.begin != bytes)
    refuse(file.path(), entry.name,
           concat("holds ", entry.end - entry.begin, " bytes, but ", entry.dtype, " ", show(entry.shape), " needs ",
                  bytes));
}

}  // namespace

Checkpoint::Checkpoint(const std::vector<std::string>& files, const std::vector<TableEntry>& table) {
  files_.reserve(files.size());
  for (const std::string& path : files) files_.emplace_back(path);

  std::vector<const TableEntry*> order;
  for (const TableEntry& entry : table) {
    if (entry.file >= files_.size())
      throw Error(ErrorCode::checkpoint, concat("tensor ", entry.name, ": no such file"));
    check_range(files_[entry.file], entry);
    if (!entries_.emplace(entry.name, entry).second) refuse(files_[entry.file].path(), entry.name, "appears twice");
    bytes_ += entry.end - entry.begin;
    if (entry.begin < entry.end) order.push_back(&entry);
  }
  std::ranges::sort(order, {}, [](const TableEntry* e) { return std::pair(e->file, e->begin); });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const TableEntry& previous = *order[i - 1];
    if (order[i]->file == previous.file && order[i]->begin < previous.end)
      refuse(files_[previous.file].path(), order[i]->name, concat("overlaps tensor ", previous.name));
  }
}

const TableEntry& Checkpoint::find(const std::string& name, const std::vector<std::size_t>& shape) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    const std::string where = files_.empty() ? "checkpoint" : files_.front().path();
    refuse(where, name, "is missing");
  }
  const TableEntry& entry = found->second;
  if (!std::ranges::equal(entry.shape, shape))
    refuse(files_[entry.file].path(), name,
           concat("has shape ", show(entry.shape), ", config.json implies ", show(shape)));
  return entry;
}

std::vector<std::uint32_t> Checkpoint::words(const std::string& name, const std::vector<std::size_t>& shape) const {
  const TableEntry& entry = find(name, shape);
  const MappedFile& file = files_[entry.file];
  if (entry.dtype != "I32") refuse(file.path(), name, concat("has dtype ", entry.dtype, "; I32 is wanted"));
  std::vector<std::uint32_t> words((entry.end - entry.begin) / sizeof(std::uint32_t));
  if (!words.empty()) std::memcpy(words.data(), file.data() + entry.begin, words.size() * sizeof(std::uint32_t));
  return words;
}

TensorView Checkpoint::tensor(const std::string& name, const std::vector<std::size_t>& shape) const {
  const TableEntry& entry = find(name, shape);
  const MappedFile& file = files_[entry.file];
  const auto dtype = parse_dtype(entry.dtype);
  if (!dtype) refuse(file.path(), name, concat("has dtype ", entry.dtype, "; F32, F16 or BF16 is wanted"));

  TensorView view{name, *dtype, shape, file.data() + entry.begin};
  if (entry.begin % size_of(*dtype) != 0) {
    std::unique_ptr<std::byte[]>& copy = realigned_[name];
    if (copy == nullptr) {
      copy = std::make_unique<std::byte[]>(view.bytes());
      std::memcpy(copy.get(), view.data, view.bytes());
    }
    view.data = copy.get();
  }
  if (finite_.contains(name)) return view;
  if (!all_finite(view.data, *dtype, view.elements())) refuse(file.path(), name, "contains NaN or infinity");
  finite_.insert(name);
  return view;
}

void Checkpoint::forget(const std::string& name) const {
  release_pages(name);
  realigned_.erase(name);
}

void Checkpoint::release_pages(const std::string& name) const {
  if (const auto found = entries_.find(name); found != entries_.end())
    files_[found->second.file].forget(found->second.begin, found->second.end);
}

bool all_finite(const std::byte* data, DType dtype, std::size_t count) {
  // A number is not finite when its exponent is all ones; counted without branches so that the loop vectorises.
  const auto scan = [data, count]<class Word>(Word exponent) {
    const auto* words = reinterpret_cast<const Word*>(data);
    Word bad = 0;
    for (std::size_t i = 0; i < count; ++i) bad |= static_cast<Word>((words[i] & exponent) == exponent);
    return bad == 0;
  };
  switch (dtype) {
    case DType::f32:
      return scan(std::uint32_t{0x7f800000});
    case DType::f16:
      return scan(std::uint16_t{0x7c00});
    case DType::bf16:
      return scan(std::uint16_t{0x7f80});
  }
  return false;
}

}  // namespace qe
