// Every kind of checkpoint end to end on CUDA, token for token against the CPU engine, and alike alone, batched and cached.

#include "cuda_fixture.h"
#include "cuda_running.h"

namespace {

using namespace running;

void check_like_cpu(const std::string& folder, std::initializer_list<std::size_t> lengths, std::size_t answer,
                    std::optional<WeightFormat> weights = {}) {
  FolderModel model(QE_ROOT + folder);
  model.config.weights = weights.value_or(model.config.weights);
  const auto asked = requests(model.config.tokenizer_vocab, lengths, answer);
  Running reference(model, on_cpu()), running(model, on_cuda(Precision::f32));
  CHECK(running.answers(asked) == reference.answers(asked));
  running.engine().check_integrity();
}

/** In the precision that is served. */
void check_deterministic(const std::string& folder, std::optional<WeightFormat> weights = {}) {
  FolderModel model(QE_ROOT + folder);
  model.config.weights = weights.value_or(model.config.weights);
  const auto asked = requests(model.config.tokenizer_vocab, {5, 33, 18}, 4);
  Running running(model, on_cuda(Precision::bf16, true));
  const auto together = running.answers(asked);
  for (std::size_t i = 0; i < asked.size(); ++i) CHECK(running.answers({asked[i]}).front() == together[i], concat("request ", i));
  CHECK(running.engine().stats().prefix_hits > 0);
  Running fresh(model, on_cuda(Precision::bf16, true));
  CHECK(fresh.answers({asked[1]}).front() == together[1]);
}

TEST("cuda engine: the shipped model answers token for token as the CPU's") { check_like_cpu("/gpu-backend/models/tiny", {37, 12, 18}, 6); }
TEST("cuda engine: a mixture of experts answers token for token as the CPU's") { check_like_cpu("/test/golden/engine/moe", {1, 17, 30}, 6); }
TEST("cuda engine: GPTQ weights answer token for token as the CPU's") { check_like_cpu("/test/golden/engine/gptq", {1, 17, 30}, 6); }
TEST("cuda engine: AWQ weights answer token for token as the CPU's") { check_like_cpu("/test/golden/engine/awq", {1, 17, 30}, 6); }
TEST("cuda engine: deterministic mode holds for a mixture of experts") { check_deterministic("/test/golden/engine/moe"); }
TEST("cuda engine: deterministic mode holds for four-bit weights") { check_deterministic("/test/golden/engine/gptq"); }

TEST("cuda engine: weights rounded to int8 answer token for token as the CPU's") {
  check_like_cpu("/test/golden/engine/dense-gqa-tied", {1, 17, 30}, 6, WeightFormat::int8);
}
TEST("cuda engine: deterministic mode holds for int8 weights") {
  check_deterministic("/test/golden/engine/dense-gqa-tied", WeightFormat::int8);
}

TEST("cuda: experts of eight bits are refused when the checkpoint is opened, in one line") {
  FolderModel model(QE_ROOT "/test/golden/engine/moe");
  model.config.weights = WeightFormat::int8;
  CHECK_THROWS("experts on CUDA are plain matrices", Running(model, on_cuda(Precision::bf16)));
}

}  // namespace
