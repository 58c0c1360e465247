// The whole engine on CUDA: the same model, scheduler and prefix cache as on the CPU, token for token; and its modes.

#include <algorithm>

#include "cuda_device.h"
#include "cuda_fixture.h"
#include "cuda_running.h"
#include "ops/cuda/open.h"
#include "tiny_model.h"

namespace {

using namespace running;

TEST("cuda engine: answers token for token as the CPU's, batched, chunked, cached, with and without graphs") {
  const TinyModel model;
  const auto asked = requests(model.config.tokenizer_vocab, {1, 16, 17, 45, 33}, 6);
  Running reference(model, on_cpu());
  const auto want = reference.answers(asked);
  for (const bool graphs : {false, true}) {
    Running running(model, on_cuda(Precision::f32, false, graphs));
    CHECK(running.answers(asked) == want);
    CHECK(running.answers(asked) == want);  // now with every prefix cached
    CHECK(running.engine().stats().prefix_hits > 0);
    running.engine().check_integrity();
    const auto& ops = dynamic_cast<const CudaOps&>(running.engine().ops());
    CHECK(graphs == (ops.graphs() > 0));
  }
}

TEST("cuda engine: a model in bf16 answers token for token as the CPU's") {
  const FolderModel model(QE_ROOT "/test/golden/engine/dense-gqa-tied");
  const auto asked = requests(model.config.tokenizer_vocab, {1, 16, 37}, 6);
  Running reference(model, on_cpu()), running(model, on_cuda(Precision::f32));
  CHECK(running.answers(asked) == reference.answers(asked));
}

std::vector<double> probabilities(std::span<const float> logits) {
  const double top = double{*std::ranges::max_element(logits)};
  std::vector<double> all;
  double total = 0;
  for (const float logit : logits) total += std::exp(double{logit} - top);
  for (const float logit : logits) all.push_back(std::exp(double{logit} - top) / total);
  return all;
}

TEST("cuda engine: served precision stays within a small divergence of fp32") {
  const FolderModel model(QE_ROOT "/test/golden/engine/dense-gqa-tied");
  const Tokens prompt = requests(model.config.vocab, {50}, 1).front().tokens;
  Running reference(model, on_cpu());
  const auto want = reference.engine().logits(prompt, 64);
  for (const bool deterministic : {false, true}) {
    Running running(model, on_cuda(Precision::bf16, deterministic));
    const auto got = running.engine().logits(prompt, 20);
    double worst = 0;
    std::size_t agreed = 0;
    for (std::size_t row = 0; row < prompt.size(); ++row) {
      const auto p = std::span(want).subspan(row * model.config.vocab, model.config.vocab);
      const auto q = std::span(got).subspan(row * model.config.vocab, model.config.vocab);
      const auto a = probabilities(p), b = probabilities(q);
      double divergence = 0;
      for (std::size_t i = 0; i < a.size(); ++i) divergence += a[i] * std::log(a[i] / b[i]);
      worst = std::max(worst, divergence);
      agreed += std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin();
    }
    CHECK(worst < 1e-2 && agreed >= prompt.size() - 2, concat("divergence ", worst, ", top-1 ", agreed, " of ", prompt.size()));
  }
}

TEST("cuda engine: deterministic mode gives the same bits however the prompt is cut") {
  const FolderModel model(QE_ROOT "/test/golden/engine/dense-gqa-tied");
  const Tokens prompt = requests(model.config.vocab, {21}, 1).front().tokens;
  Running running(model, on_cuda(Precision::bf16, true));
  const auto whole = running.engine().logits(prompt, 40);
  for (const std::size_t chunk : {1, 7, 16}) CHECK(device::same_bits(running.engine().logits(prompt, chunk), whole), concat("chunks of ", chunk));
}

TEST("cuda engine: deterministic mode answers the same alone, batched and cached") {
  const FolderModel model(QE_ROOT "/test/golden/engine/dense-gqa-tied");
  const auto asked = requests(model.config.vocab, {5, 33, 35}, 5);
  Running running(model, on_cuda(Precision::bf16, true));
  const auto together = running.answers(asked);
  for (std::size_t i = 0; i < asked.size(); ++i) CHECK(running.answers({asked[i]}).front() == together[i], concat("request ", i));
  CHECK(running.engine().stats().prefix_hits > 0);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    Running fresh(model, on_cuda(Precision::bf16, true));
    CHECK(fresh.answers({asked[i]}).front() == together[i], concat("request ", i, " in a new engine"));
  }
}

TEST("cuda engine: deterministic mode answers the same, ahead or not") {
  const FolderModel model(QE_ROOT "/test/golden/engine/dense-gqa-tied");
  auto asked = requests(model.config.vocab, {5, 33, 15, 16}, 5);
  Running waiting(model, on_cuda(Precision::bf16, true), 64, false);
  const auto want = waiting.answers(asked);
  for (std::size_t i = 0; i < asked.size(); i += 2) asked[i].sampling.stop = {want[i][3]};
  const auto until = waiting.answers(asked);
  Running running(model, on_cuda(Precision::bf16, true));
  CHECK(running.answers(asked) == until);
  CHECK(running.engine().stats().steps_ahead > 0 && waiting.engine().stats().steps_ahead == 0);
}

TEST("cuda engine: steps of one shape share a graph, and a graph's stale indices never show") {
  const TinyModel model(3);
  Running running(model, on_cuda(Precision::f32));
  const auto asked = requests(model.config.tokenizer_vocab, {3, 4, 5, 6, 7}, 20);
  Running reference(model, on_cpu());
  const auto want = reference.answers(asked);
  for (std::size_t i = 0; i < asked.size(); ++i) CHECK(running.answers({asked[i]}).front() == want[i]);
  CHECK(dynamic_cast<const CudaOps&>(running.engine().ops()).graphs() == 1);
  CHECK(running.answers(asked) == want);
}

TEST("cuda: a block saved to the host comes back to another block, whole and alone") {
  for (const Precision precision : {Precision::bf16, Precision::f32}) {
    CudaOps ops({precision, false, true, 0});
    AttentionShape shape;
    shape.layers = 3, shape.heads = 4, shape.kv_heads = 2, shape.head_dim = 16;
    ops.allocate_kv(shape, 3);
    std::vector<std::byte> data(ops.kv_block_bytes(shape)), seen(data.size()), other(data.size());
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7);
    ops.load_block(1, data.data());
    ops.save_block(1, seen.data());
    CHECK(seen == data);
    for (const BlockId neighbour : {0u, 2u}) {
      ops.save_block(neighbour, other.data());
      CHECK(std::ranges::all_of(other, [](std::byte byte) { return byte == std::byte{0}; }));
    }
    ops.load_block(2, seen.data());
    ops.save_block(2, other.data());
    CHECK(other == data);
  }
}

TEST("cuda: what a GPU cannot hold is refused with the numbers, before anything is loaded") {
  CHECK_THROWS("free; the weights take 900 GB", cuda::open({false, 0, 900'000'000'000, 0}));
  CHECK_THROWS("keys and values 40 GB", cuda::open({false, 0, 1000, 40'000'000'000}));
  CHECK_THROWS("the rest 1801.07 GB", cuda::open({false, 0, 1000, 0, 900'000'000'000}));
  const std::size_t all = cuda::open({false, 0, 1000, 0}).kv_bytes;
  CHECK(all > 1'000'000'000 && all - cuda::open({false, 0, 1000, 0, 1'000'000}).kv_bytes == 2'000'000);
  AttentionShape shape;
  shape.layers = 1, shape.heads = 4, shape.kv_heads = 2, shape.head_dim = 20;
  CHECK_THROWS("a multiple of 8", CudaOps({Precision::bf16, false, true, 0}).allocate_kv(shape, 4));
}

}  // namespace
