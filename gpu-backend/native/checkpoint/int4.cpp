#include "checkpoint/int4.h"

#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace qe {
namespace {

float widen(const TensorView& tensor, std::size_t i) {
  if (tensor.dtype == DType::f32) return reinterpret_cast<const float*>(tensor.data)[i];
  const std::uint32_t half = reinterpret_cast<const std::uint16_t*>(tensor.data)[i];
  if (tensor.dtype == DType::bf16) return std::bit_cast<float>(half << 16);
  const float magnitude = std::bit_cast<float>((half & 0x7fff) << 13) * 0x1p112f;
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

/** Where output o % 8 lies inside an AWQ word. */
constexpr std::array<unsigned, 8> kAwqNibble{0, 4, 1, 5, 2, 6, 3, 7};

constexpr std::uint32_t nibble(std::uint32_t word, std::size_t at) { return word >> (4 * at) & 15; }

void check_order(const Checkpoint& checkpoint, const std::string& name, std::size_t in, std::size_t group) {
  if (!checkpoint.has(name)) return;
  const std::vector<std::uint32_t> order = checkpoint.words(name, {in});
  for (std::size_t i = 0; i < in; ++i)
    if (order[i] != i / group)
      throw Error(ErrorCode::checkpoint,
                  concat("tensor ", name, ": inputs in the order of their activations (desc_act) are not supported"));
}

}  // namespace

Int4Matrix read_int4(const Checkpoint& checkpoint, const std::string& prefix, WeightFormat format, std::size_t out,
                     std::size_t in, std::size_t group) {
  if (in % group != 0 || out % 8 != 0)
    throw Error(ErrorCode::checkpoint, concat("tensor ", prefix, "qweight: [", out, ", ", in,
                                              "] is no whole number of groups of ", group, " and words of 8"));
  const bool gptq = format == WeightFormat::gptq;
  const std::size_t groups = in / group, packed = out / 8;
  if (gptq) check_order(checkpoint, prefix + "g_idx", in, group);
  const auto weights = checkpoint.words(prefix + "qweight", gptq ? std::vector{in / 8, out} : std::vector{in, packed});
  const auto zeros = checkpoint.words(prefix + "qzeros", {groups, packed});
  const TensorView scales = checkpoint.tensor(prefix + "scales", {groups, out});

  Int4Matrix matrix{out, in, group, std::vector<std::uint8_t>(out * in / 2), {}, {}};
  matrix.scales.resize(out * groups);
  matrix.offsets.resize(out * groups);
  for (std::size_t o = 0; o < out; ++o) {
    const std::size_t lane = gptq ? o % 8 : kAwqNibble[o % 8];
    for (std::size_t i = 0; i < in; ++i) {
      const std::uint32_t q = gptq ? nibble(weights[i / 8 * out + o], i % 8) : nibble(weights[i * packed + o / 8], lane);
      const std::size_t byte = o * in / 2 + i / 32 * 16 + i % 16;
      matrix.nibbles[byte] |= static_cast<std::uint8_t>(i % 32 < 16 ? q : q << 4);
    }
    for (std::size_t g = 0; g < groups; ++g) {
      const float scale = widen(scales, g * out + o);
      const auto zero = static_cast<float>(nibble(zeros[g * packed + o / 8], lane) + (gptq ? 1 : 0));
      matrix.scales[o * groups + g] = scale;
      matrix.offsets[o * groups + g] = -zero * scale;  // exact: eleven bits times five
    }
  }
  return matrix;
}

}  // namespace qe
