#pragma once

// Ops on the CPU that choose tokens as a device does: apart from the launch, by turns, a row now and then left to the
// host, and rows of the next step that name a choice in place of their token. For what the engine makes of it.

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "ops/cpu/cpu_ops.h"
#include "sampler/sampler.h"

class ChoosingOps final : public qe::Ops {
 public:
  /** What the test sees and sets; the engine owns the Ops, the test this. */
  struct Story {
    std::string calls;             // L: a launch begins, T: tokens are taken, R: logits are read
    unsigned undecided_every = 0;  // of so many rows one; 0: none
    std::size_t fails_at = 0;      // the launch that fails, from 1; 0: none
    std::size_t launches = 0;
  };

  explicit ChoosingOps(std::shared_ptr<Story> story) : story_(std::move(story)) {}

  std::string level() const override { return cpu_.level(); }
  unsigned threads() const override { return 1; }
  qe::Weight upload_matrix(const qe::TensorView& tensor) override { return cpu_.upload_matrix(tensor); }
  qe::Buffer upload_vector(const qe::TensorView& tensor) override { return cpu_.upload_vector(tensor); }
  qe::Buffer allocate(std::size_t floats) override { return cpu_.allocate(floats); }
  void allocate_kv(const qe::AttentionShape& shape, std::size_t blocks) override { cpu_.allocate_kv(shape, blocks); }
  std::size_t kv_block_bytes(const qe::AttentionShape& shape) const override { return cpu_.kv_block_bytes(shape); }
  void save_block(qe::BlockId block, std::byte* to) override { cpu_.save_block(block, to); }
  void load_block(qe::BlockId block, const std::byte* from) override { cpu_.load_block(block, from); }

  void begin(const qe::Batch& batch) override {
    story_->calls += 'L';
    if (++story_->launches == story_->fails_at) throw qe::Error(qe::ErrorCode::internal, "a launch that fails");
    batch_ = batch;
    for (qe::TokenId& token : batch_.tokens)
      if (token >= qe::kChosenBefore) {
        token = chosen_.at(token - qe::kChosenBefore);
        if (token == qe::kUndecided) token = 0;
      }
    cpu_.begin(batch_);
  }
  void embed(const qe::Weight& table, float* x) override { cpu_.embed(table, x); }
  void rms_norm(const float* x, const qe::Buffer& weight, float eps, std::size_t rows, std::size_t width, float* y) override {
    cpu_.rms_norm(x, weight, eps, rows, width, y);
  }
  void linear(const float* x, std::size_t rows, std::span<const qe::Linear> parts) override { cpu_.linear(x, rows, parts); }
  void rope_and_store(std::size_t layer, float* q, float* k, const float* v) override { cpu_.rope_and_store(layer, q, k, v); }
  void attention(std::size_t layer, const float* q, float* out) override { cpu_.attention(layer, q, out); }
  void gated(const float* x, std::size_t rows, const qe::Linear& gate, const qe::Linear& up) override { cpu_.gated(x, rows, gate, up); }
  void silu_mul(const float* gate, const float* up, std::size_t count, float* y) override { cpu_.silu_mul(gate, up, count, y); }
  void gather_logit_rows(const float* from, std::size_t width, float* to) override { cpu_.gather_logit_rows(from, width, to); }
  std::span<const float> read(const float* from, std::size_t count) override {
    story_->calls += 'R';
    return cpu_.read(from, count);
  }

  bool chooses() const override { return true; }
  void launch_choose(float* logits, std::size_t width, std::size_t vocab, std::span<const qe::Choice> choices) override {
    chosen_.clear();
    for (std::size_t row = 0; row < choices.size(); ++row) {
      const bool left = choices[row].on_host || (story_->undecided_every > 0 && random_() % story_->undecided_every == 0);
      chosen_.push_back(left ? qe::kUndecided : choose({logits + row * width, vocab}, choices[row]));
    }
    CHECK(!under_way_[batch_.turn], "the step of this turn was not taken");
    under_way_[batch_.turn] = true;
    taken_[batch_.turn] = chosen_;
  }
  std::vector<qe::TokenId> take_tokens(unsigned turn) override {
    story_->calls += 'T';
    CHECK(std::exchange(under_way_[turn], false), "no step of this turn is under way");
    return taken_[turn];
  }

 private:
  /** The host's sampler with the number of a draw given; no penalties, no nucleus. */
  static qe::TokenId choose(std::span<const float> logits, const qe::Choice& choice) {
    if (choice.top_p < 1 || choice.min_p > 0 || !choice.seen.empty()) return qe::kUndecided;
    std::vector<float> row(logits.begin(), logits.end());
    for (const auto& [token, bias] : choice.biases) row[token] += bias;
    for (const qe::TokenId token : choice.forbidden) row[token] = -INFINITY;
    const qe::TokenId top = qe::argmax(row);
    if (choice.temperature == 0) return top;
    std::vector<qe::TokenId> ids(row.size());
    std::iota(ids.begin(), ids.end(), qe::TokenId{0});
    if (choice.top_k > 0) {
      std::ranges::stable_sort(ids, [&](qe::TokenId a, qe::TokenId b) { return row[a] > row[b]; });
      ids.resize(std::min(choice.top_k, ids.size()));
    }
    const auto weight = [&](qe::TokenId id) {
      const double exponent = (double{row[id]} - double{row[top]}) * (1 / choice.temperature);
      return exponent > -40 ? std::exp(exponent) : 0.0;
    };
    double mass = 0;
    for (const qe::TokenId id : ids) mass += weight(id);
    double left = choice.noise * mass;
    for (const qe::TokenId id : ids)
      if ((left -= weight(id)) < 0) return id;
    return ids.back();
  }

  std::shared_ptr<Story> story_;
  qe::cpu::CpuOps cpu_{1};
  qe::Batch batch_;
  std::vector<qe::TokenId> chosen_, taken_[2];
  bool under_way_[2] = {false, false};
  std::mt19937 random_{1};
};
