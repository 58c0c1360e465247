// RoPE with the paged write, and both attentions, against plain references: block boundaries, the ends of segments,
// groups of query heads, rows that only pad the batch.

#include "base/types.h"
#include "cuda_device.h"
#include "ops/cuda/kernels.h"

namespace {

using namespace device;

struct Case {
  std::size_t heads, kv_heads, dim;
  std::vector<std::pair<std::size_t, std::size_t>> slices;  // position of the first row, rows
};

/** A batch of slices whose earlier tokens lie in the cache already, paged in a shuffled order. */
struct Scene {
  Case c;
  std::size_t rows = 0, stride = 0, blocks = 0;
  std::vector<std::uint32_t> positions, slice_of, tables;
  std::vector<QueryTile> tiles;
  std::vector<Floats> k, v;  // per slice, [tokens][kv_heads][dim], rotated keys
  Floats keys, values;       // the cache

  explicit Scene(Case shape, std::size_t tile_rows = 64) : c(std::move(shape)) {
    for (const auto& [position, count] : c.slices) stride = std::max(stride, qe::div_up(position + count, 256) * 16);
    std::vector<std::uint32_t> order;
    for (std::uint32_t i = 0; i < c.slices.size() * stride; ++i) order.push_back(i);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    blocks = order.size();
    // What nobody wrote is huge: were it read, the answer would show it.
    keys.assign(blocks * c.kv_heads * 16 * c.dim, 1e30f), values = keys;
    for (std::size_t s = 0; s < c.slices.size(); ++s) {
      const auto& [position, count] = c.slices[s];
      const std::size_t tokens = position + count, width = c.kv_heads * c.dim;
      k.push_back(rounded(noise(tokens * width, static_cast<unsigned>(20 + s))));
      v.push_back(rounded(noise(tokens * width, static_cast<unsigned>(40 + s))));
      for (std::size_t i = 0; i < stride; ++i) tables.push_back(order[s * stride + i]);
      for (std::size_t t = 0; t < tokens; ++t)
        for (std::size_t h = 0; h < c.kv_heads; ++h)
          for (std::size_t d = 0; d < c.dim; ++d) {
            const std::size_t to = place(s, t, h, d), from = (t * c.kv_heads + h) * c.dim + d;
            keys[to] = k[s][from], values[to] = v[s][from];
          }
      for (std::size_t i = 0; i < count; i += tile_rows)
        tiles.push_back({static_cast<std::uint32_t>(rows + i), static_cast<std::uint32_t>(std::min(tile_rows, count - i)),
                         static_cast<std::uint32_t>(s), static_cast<std::uint32_t>(position + i)});
      for (std::size_t i = 0; i < count; ++i)
        positions.push_back(static_cast<std::uint32_t>(position + i)), slice_of.push_back(static_cast<std::uint32_t>(s));
      rows += count;
    }
    positions.push_back(0), slice_of.push_back(BatchView::kNoSlice);  // a row of padding
    tiles.push_back({0, 0, 0, 0});
  }

  [[nodiscard]] std::size_t place(std::size_t slice, std::size_t token, std::size_t head, std::size_t d) const {
    return ((tables[slice * stride + token / 16] * c.kv_heads + head) * 16 + token % 16) * c.dim + d;
  }

  [[nodiscard]] std::vector<double> attended(const Floats& q) const {
    std::vector<double> out(rows * c.heads * c.dim);
    const std::size_t group = c.heads / c.kv_heads;
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t h = 0; h < c.heads; ++h) {
        const std::size_t s = slice_of[row], at = (row * c.heads + h) * c.dim, seen = positions[row] + 1;
        const auto from = [&](const Floats& all, std::size_t t, std::size_t d) {
          return double{all[(t * c.kv_heads + h / group) * c.dim + d]};
        };
        std::vector<double> weight(seen);
        double total = 0;
        for (std::size_t t = 0; t < seen; ++t) {
          double score = 0;
          for (std::size_t d = 0; d < c.dim; ++d) score += double{q[at + d]} * from(k[s], t, d);
          total += weight[t] = std::exp(score / std::sqrt(static_cast<double>(c.dim)));
        }
        for (std::size_t t = 0; t < seen; ++t)
          for (std::size_t d = 0; d < c.dim; ++d) out[at + d] += weight[t] / total * from(v[s], t, d);
      }
    return out;
  }
};

/** The scene on the device; KV is float or Bf16 (stored as its bits). */
struct Placed {
  explicit Placed(const Scene& s)
      : scene(s), positions(s.positions), slice_of(s.slice_of), tables(s.tables), tiles(s.tiles), keys(s.keys), values(s.values),
        half_keys(bits_of(s.keys)), half_values(bits_of(s.values)) {}
  [[nodiscard]] BatchView view() const {
    return {nullptr, positions, slice_of, tables, tiles, nullptr, static_cast<std::uint32_t>(scene.rows + 1),
            static_cast<std::uint32_t>(scene.stride), static_cast<std::uint32_t>(scene.tiles.size())};
  }
  template <class KV>
  [[nodiscard]] PagedCache<KV> cache() const {
    const auto of = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
    const std::uint32_t heads = of(scene.c.heads), kv = of(scene.c.kv_heads), dim = of(scene.c.dim);
    if constexpr (std::is_same_v<KV, float>) return {keys, values, heads, kv, dim};
    else
      return {reinterpret_cast<KV*>(static_cast<std::uint16_t*>(half_keys)), reinterpret_cast<KV*>(static_cast<std::uint16_t*>(half_values)),
              heads, kv, dim};
  }
  const Scene& scene;
  Array<std::uint32_t> positions, slice_of, tables;
  Array<QueryTile> tiles;
  Array<float> keys, values;
  Array<std::uint16_t> half_keys, half_values;
};

float scale_of(const Case& c) { return 1 / std::sqrt(static_cast<float>(c.dim)); }

template <class KV>
Floats by_rows(const Scene& scene, const Placed& placed, const Array<float>& q) {
  const auto splits = static_cast<unsigned>(scene.stride / 16);
  const std::size_t rows = scene.rows + 1;
  const Array<float> partial(attention_scratch(rows, scene.c.heads, scene.c.dim, splits)), out(rows * scene.c.heads * scene.c.dim);
  attention_rows(stream(), placed.view(), 0, rows, q, placed.cache<KV>(), scale_of(scene.c), splits, partial, out);
  Floats got = out.read();
  got.resize(scene.rows * scene.c.heads * scene.c.dim);
  return got;
}

Floats by_tiles(const Scene& scene, const Placed& placed, const Array<float>& q, unsigned warps) {
  const Array<float> out(scene.rows * scene.c.heads * scene.c.dim);
  attention_tiles(stream(), placed.view(), warps, q, placed.cache<Bf16>(), scale_of(scene.c), out);
  return out.read();
}

const std::vector<Case>& decode_cases() {
  static const std::vector<Case> cases{
      {1, 1, 16, {{0, 1}, {14, 1}, {15, 1}, {16, 1}}},            // one token, block boundaries
      {4, 2, 64, {{254, 1}, {255, 1}, {256, 1}, {0, 1}}},         // segment boundaries
      {14, 2, 64, {{300, 1}}},                                    // Qwen2-0.5B
      {28, 4, 128, {{30, 1}, {0, 1}}},                            // Qwen2-7B
      {20, 2, 24, {{17, 1}, {270, 1}}},                           // a group of ten: two chunks of heads
  };
  return cases;
}

TEST("cuda: split-K attention against the reference, fp32 and bf16 caches") {
  for (const Case& c : decode_cases()) {
    const Scene scene(c);
    const Placed placed(scene);
    const Floats q = rounded(noise((scene.rows + 1) * c.heads * c.dim, 11));
    const Array<float> on_q(q);
    const std::string where = qe::concat(c.heads, " heads of ", c.dim);
    check_near(by_rows<float>(scene, placed, on_q), scene.attended(q), 1e-5, where);
    check_near(by_rows<Bf16>(scene, placed, on_q), scene.attended(q), 1e-5, where + " bf16");
  }
}

TEST("cuda: tiled attention on tensor cores against the reference, prefill in chunks") {
  for (const Case& c : {Case{2, 1, 64, {{0, 1}, {0, 17}, {47, 66}}}, Case{28, 4, 128, {{60, 5}}}, Case{4, 2, 128, {{0, 64}, {64, 1}}}}) {
    const Scene scene(c);
    const Placed placed(scene);
    const Floats q = rounded(noise((scene.rows + 1) * c.heads * c.dim, 12));
    // Weights are rounded to bf16 before they meet the values: 2^-9 each.
    check_near(by_tiles(scene, placed, Array<float>(q), 4), scene.attended(q), 4e-3, qe::concat(c.heads, " heads of ", c.dim));
  }
}

TEST("cuda: a row of tiled attention has the same bits alone and in a tile, however the prompt was cut") {
  const Case whole{2, 1, 64, {{0, 130}}};
  const Scene scene(whole);
  const Placed placed(scene);
  const std::size_t width = whole.heads * whole.dim;
  const Floats q = noise((scene.rows + 1) * width, 13);
  const Array<float> on_q(q);
  const Floats together = by_tiles(scene, placed, on_q, 4);
  for (const std::size_t row : {0, 15, 16, 63, 64, 65, 129}) {
    const Array<QueryTile> alone(std::vector<QueryTile>{{static_cast<std::uint32_t>(row), 1, 0, static_cast<std::uint32_t>(row)}});
    BatchView view = placed.view();
    view.tiles = alone, view.tiles_count = 1;
    const Array<float> out(scene.rows * width);
    attention_tiles(stream(), view, 1, on_q, placed.cache<Bf16>(), scale_of(whole), out);
    const Floats got = out.read();
    CHECK(std::memcmp(got.data() + row * width, together.data() + row * width, width * sizeof(float)) == 0, qe::concat("row ", row));
  }
}

TEST("cuda: rope rotates as the reference does and writes each token to its block, and nothing else") {
  for (const Case& c : {Case{3, 1, 16, {{0, 1}, {15, 2}, {31, 1}}}, Case{28, 4, 128, {{16, 3}}}}) {
    const Scene scene(c);
    const Placed placed(scene);
    const std::size_t half = c.dim / 2, wide = c.heads * c.dim, narrow = c.kv_heads * c.dim, rows = scene.rows + 1;
    const Floats q = noise(rows * wide, 14), k = noise(rows * narrow, 15), v = noise(rows * narrow, 16);
    Floats cosine, sine;
    for (std::size_t p = 0; p < 64; ++p)
      for (std::size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(p) * std::pow(1e4f, -static_cast<float>(i) / static_cast<float>(half));
        cosine.push_back(std::cos(angle)), sine.push_back(std::sin(angle));
      }
    const Array<float> on_q(q), on_k(k), on_v(v), on_cosine(cosine), on_sine(sine);
    rope_and_store(stream(), placed.view(), on_q, on_k, on_v, on_cosine, on_sine, placed.cache<float>());
    const auto turned = [&](const Floats& x, std::size_t at, std::size_t d, std::size_t position) {
      const std::size_t i = d % half;
      const double a = double{x[at + i]}, b = double{x[at + i + half]};
      const double co = double{cosine[position * half + i]}, si = double{sine[position * half + i]};
      return d < half ? a * co - b * si : b * co + a * si;
    };
    std::vector<double> want_q(q.begin(), q.end()), keys(scene.keys.begin(), scene.keys.end()), values(scene.values.begin(), scene.values.end());
    for (std::size_t row = 0; row < scene.rows; ++row)
      for (std::size_t d = 0; d < c.dim; ++d) {
        const std::size_t position = scene.positions[row];
        for (std::size_t h = 0; h < c.heads; ++h) want_q[row * wide + h * c.dim + d] = turned(q, row * wide + h * c.dim, d, position);
        for (std::size_t h = 0; h < c.kv_heads; ++h) {
          const std::size_t to = scene.place(scene.slice_of[row], position, h, d), from = row * narrow + h * c.dim;
          keys[to] = turned(k, from, d, position), values[to] = double{v[from + d]};
        }
      }
    check_near(on_q.read(), want_q, 1e-6, "queries");
    const auto exact = [](const Floats& got, const std::vector<double>& want) {
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::abs(double{got[i]} - want[i]) <= 1e-5 || double{got[i]} == want[i], qe::concat("place ", i));
    };
    exact(placed.keys.read(), keys);
    exact(placed.values.read(), values);
  }
}

}  // namespace
