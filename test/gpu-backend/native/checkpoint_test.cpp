#include <cstring>
#include <limits>

#include "base/error.h"
#include "check.h"
#include "tiny_model.h"

namespace {

using namespace qe;

std::string refusal(const TinyModel &model, std::vector<TableEntry> table) {
  return check::thrown([&] { Checkpoint({model.path}, table); });
}

TEST("checkpoint: every lie in the table is refused with file, tensor and "
     "reason") {
  const TinyModel model;
  const auto with = [&](auto &&edit) {
    std::vector<TableEntry> table = model.table;
    edit(table[3]);
    const std::string message = refusal(model, table);
    CHECK(message.starts_with(model.path + ": tensor " + model.table[3].name +
                              ": "),
          message);
    return message;
  };
  const auto has = [](const std::string &text, const char *part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(with([](TableEntry &e) { e.end += 1u << 30; }), "of a file of"));
  CHECK(has(with([](TableEntry &e) { std::swap(e.begin, e.end); }),
            "after its end"));
  CHECK(has(with([](TableEntry &e) { e.end += 4; }), "needs"));
  CHECK(has(with([](TableEntry &e) { e.shape = {~std::uint64_t{0} / 2, 3}; }),
            "overflows"));
  CHECK(has(with([](TableEntry &e) { e.shape = {1u << 31, 1u << 31, 4}; }),
            "overflows"));
  CHECK(has(with([](TableEntry &e) { e.dtype = "F16"; }), "needs"));
  CHECK(
      has(with([](TableEntry &e) { e.dtype = "nonsense"; }), "unknown dtype"));
  CHECK(has(with([](TableEntry &e) {
              e.begin = std::numeric_limits<std::uint64_t>::max();
            }),
            "after its end"));

  std::vector<TableEntry> table = model.table;
  table[3].file = 7;
  CHECK(has(refusal(model, table), "no such file"));
  table = model.table;
  table.push_back(table[3]);
  CHECK(has(refusal(model, table), "appears twice"));
  table.back().name = "another";
  CHECK(has(refusal(model, table), "overlaps"));
  table.back().shape = {0}, table.back().end = table.back().begin;
  CHECK(refusal(model, table).empty());
}

TEST("checkpoint: a tensor that is missing, misshapen or of a dtype we cannot "
     "compute with") {
  const TinyModel model;
  const auto checkpoint = model.open();
  CHECK(checkpoint->has("model.norm.weight") &&
        !checkpoint->has("lm_head.weight"));
  CHECK(checkpoint->tensor("model.norm.weight", {48}).elements() == 48);
  CHECK_THROWS("is missing", checkpoint->tensor("lm_head.weight", {101, 48}));
  CHECK_THROWS("config.json implies [47]",
               checkpoint->tensor("model.norm.weight", {47}));
  std::vector<TableEntry> table = model.table;
  table.back().dtype = "I32";
  const Checkpoint integers({model.path}, table);
  CHECK_THROWS("F32, F16 or BF16 is wanted",
               integers.tensor("model.norm.weight", {48}));
}

TEST("checkpoint: a file that is missing, empty or no file") {
  const std::string where = std::filesystem::temp_directory_path() /
                            ("qe-empty-" + std::to_string(getpid()));
  CHECK_THROWS("cannot open", Checkpoint({where}, {}));
  std::fclose(std::fopen(where.c_str(), "wb"));
  CHECK_THROWS("is empty", Checkpoint({where}, {}));
  std::filesystem::remove(where);
  CHECK_THROWS("not a regular file",
               Checkpoint({std::filesystem::temp_directory_path()}, {}));
}

TEST("checkpoint: unaligned tensors are copied into place") {
  const TinyModel model;
  const std::string shifted = model.path + "-shifted";
  std::FILE *from = std::fopen(model.path.c_str(), "rb");
  std::vector<char> bytes(std::filesystem::file_size(model.path) + 1);
  CHECK(std::fread(bytes.data() + 1, 1, bytes.size() - 1, from) ==
        bytes.size() - 1);
  std::fclose(from);
  std::FILE *to = std::fopen(shifted.c_str(), "wb");
  std::fwrite(bytes.data(), 1, bytes.size(), to);
  std::fclose(to);
  std::vector<TableEntry> table = model.table;
  for (TableEntry &entry : table)
    ++entry.begin, ++entry.end;
  {
    const Checkpoint unaligned({shifted}, table);
    const auto aligned = model.open();
    const TensorView a = unaligned.tensor("model.norm.weight", {48}),
                     b = aligned->tensor("model.norm.weight", {48});
    CHECK(reinterpret_cast<std::uintptr_t>(a.data) % 4 == 0);
    CHECK(std::memcmp(a.data, b.data, a.bytes()) == 0);
    CHECK(unaligned.tensor("model.norm.weight", {48}).data ==
          a.data); // one copy, however often it is asked for
  }
  std::filesystem::remove(shifted);
}

TEST("checkpoint: NaN and infinity are found in every dtype") {
  alignas(4) std::byte data[64] = {};
  const auto set = [&](std::size_t at, std::uint32_t bits, std::size_t bytes) {
    std::memset(data, 0, sizeof data);
    std::memcpy(data + at, &bits, bytes);
  };
  for (const std::size_t i : {0, 7, 15}) {
    set(i * 4, 0x7fc00000, 4);
    CHECK(!all_finite(data, DType::f32, 16));
    set(i * 4, 0xff800000, 4);
    CHECK(!all_finite(data, DType::f32, 16));
    set(i * 4, 0x7f7fffff, 4);
    CHECK(all_finite(data, DType::f32, 16));
    set(i * 2, 0x7f81, 2);
    CHECK(!all_finite(data, DType::bf16, 32));
    set(i * 2, 0x7f7f, 2);
    CHECK(all_finite(data, DType::bf16, 32));
    set(i * 2, 0xfc00, 2);
    CHECK(!all_finite(data, DType::f16, 32));
    set(i * 2, 0x7bff, 2);
    CHECK(all_finite(data, DType::f16, 32));
  }
}

TEST("config: what makes no sense is named") {
  const auto refused = [](auto &&edit) {
    const TinyModel model;
    ModelConfig config = model.config;
    edit(config);
    return check::thrown([&] { config.check(); });
  };
  CHECK(refused([](ModelConfig &) {}).empty());
  CHECK(refused([](ModelConfig &c) { c.hidden = 0; }).find("hidden_size") !=
        std::string::npos);
  CHECK(refused([](ModelConfig &c) {
          c.kv_heads = 2;
        }).find("num_key_value_heads") != std::string::npos);
  CHECK(refused([](ModelConfig &c) { c.head_dim = 15; }).find("head_dim") !=
        std::string::npos);
  CHECK(refused([](ModelConfig &c) {
          c.tokenizer_vocab = 102;
        }).find("vocab_size") != std::string::npos);
  CHECK(refused([](ModelConfig &c) {
          c.rope_theta = NAN;
        }).find("rope_theta") != std::string::npos);
}

TEST("checkpoint: a tensor whose memory was given back reads the same again") {
  const TinyModel model;
  const auto checkpoint = model.open();
  const TensorView tensor = checkpoint->tensor(
      "model.embed_tokens.weight", {model.config.vocab, model.config.hidden});
  const std::vector<std::byte> before(tensor.data,
                                      tensor.data + tensor.bytes());
  for (const TableEntry &entry : model.table)
    checkpoint->forget(entry.name);
  checkpoint->forget("no such tensor");
  CHECK(std::memcmp(before.data(), tensor.data, before.size()) == 0);
}

} // namespace
