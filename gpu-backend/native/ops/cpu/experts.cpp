// The mixture of experts. Rows are gathered by the expert they chose, so that each expert's weights are read once a
// step however many rows want it; its products are then the ordinary ones, and a row's bits depend on that row alone.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/formats.h"

namespace qe::cpu {
namespace {

struct Choice {
  std::size_t expert = 0;
  float weight = 0;
};

/** The top_k of softmax(logits), equals by index, then in ascending order of expert; [top_k] */
void choose(const float* logits, const Experts& experts, std::vector<std::size_t>& order, Choice* chosen) {
  order.resize(experts.gate.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>(experts.top_k);
  std::partial_sort(order.begin(), middle, order.end(), [&](std::size_t a, std::size_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  const float top = logits[order.front()];
  float total = 0, kept = 0;
  for (std::size_t e = 0; e < order.size(); ++e) total += std::exp(logits[e] - top);
  std::sort(order.begin(), middle);
  for (std::size_t i = 0; i < experts.top_k; ++i) {
    chosen[i] = {order[i], std::exp(logits[order[i]] - top) / total};
    kept += chosen[i].weight;
  }
  if (experts.renormalise)
    for (std::size_t i = 0; i < experts.top_k; ++i) chosen[i].weight /= kept;
}

}  // namespace

void CpuOps::experts(const float* x, const float* router, std::size_t rows, const Experts& experts, float* y) {
  const std::size_t count = experts.gate.size(), top_k = experts.top_k;
  const std::size_t hidden = experts.gate.front().in, inner = experts.gate.front().out;
  std::vector<Choice> chosen(rows * top_k);
  std::vector<std::size_t> order;
  for (std::size_t row = 0; row < rows; ++row)
    choose(router + row * count, experts, order, chosen.data() + row * top_k);

  // Places in expert order: [first[e], first[e + 1]) are expert e's rows.
  std::vector<std::size_t> first(count + 1, 0);
  for (const Choice& choice : chosen) ++first[choice.expert + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<std::size_t> next(first.begin(), first.end() - 1), place(chosen.size());
  for (std::size_t i = 0; i < chosen.size(); ++i) place[i] = next[chosen[i].expert]++;

  const auto grown = [](std::vector<float>& buffer, std::size_t floats) {
    if (buffer.size() < floats) buffer.resize(floats);
    return buffer.data();
  };
  float* in = grown(routed_x_, chosen.size() * hidden);
  float* gate = grown(routed_gate_, chosen.size() * inner);
  float* up = grown(routed_up_, chosen.size() * inner);
  float* out = grown(routed_y_, chosen.size() * hidden);
  for (std::size_t i = 0; i < chosen.size(); ++i)
    std::memcpy(in + place[i] * hidden, x + i / top_k * hidden, hidden * sizeof(float));

  const auto length = [&](std::size_t expert, std::size_t width) {
    return outputs_worth(width, first[expert + 1] - first[expert]);
  };
  for (std::size_t e = 0; e < count; ++e) {
    if (first[e] == first[e + 1]) continue;
    const Matmul job{in + first[e] * hidden, first[e + 1] - first[e], hidden};
    add_runs(job, projection_of(experts.gate[e], nullptr, gate + first[e] * inner, false), {}, length(e, hidden));
    add_runs(job, projection_of(experts.up[e], nullptr, up + first[e] * inner, false), {}, length(e, hidden));
  }
  do_runs();
  silu_mul(gate, up, chosen.size() * inner, gate);
  for (std::size_t e = 0; e < count; ++e) {
    if (first[e] == first[e + 1]) continue;
    const Matmul job{gate + first[e] * inner, first[e + 1] - first[e], inner};
    add_runs(job, projection_of(experts.down[e], nullptr, out + first[e] * hidden, false), {}, length(e, inner));
  }
  do_runs();

  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const float* from = out + place[i] * hidden;
    float* to = y + i / top_k * hidden;
    for (std::size_t d = 0; d < hidden; ++d) to[d] += chosen[i].weight * from[d];
  }
}

void CpuOps::add_gated(const float* gate, const float* x, std::size_t rows, std::size_t width, float* y) {
  for (std::size_t row = 0; row < rows; ++row) {
    const float open = 1 / (1 + std::exp(-gate[row]));
    for (std::size_t d = 0; d < width; ++d) y[row * width + d] += open * x[row * width + d];
  }
}

}  // namespace qe::cpu
