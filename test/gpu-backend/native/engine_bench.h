#pragma once

// An engine with the small random model, what its events said, and requests for it.

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "engine/engine.h"
#include "ops/cpu/cpu_ops.h"
#include "tiny_model.h"

namespace engine_bench {

using namespace qe;

struct Answer {
  std::vector<TokenId> tokens;
  std::optional<FinishEvent> finish;
  std::string failure;
};

/** Allows a third of the tokens, another third at each position of an answer; ends it before its 20th token. */
inline TokenMask mask_at(std::size_t generated) {
  TokenMask mask(4);
  if (generated < 19)
    for (TokenId id = 0; id < 97; ++id)
      if ((id + generated) % 3 == 0) mask[id / 32] |= 1u << id % 32;
  return mask;
}

/** An engine and what its events said; constrained requests get each mask a while after the token before. */
class Bench {
 public:
  explicit Bench(const TinyModel& model, std::size_t blocks, SchedulerLimits limits = {}, unsigned threads = 1,
                 std::size_t host_blocks = 0, std::string_view level = "")
      : Bench(model, blocks, limits, std::make_unique<cpu::CpuOps>(threads, level), host_blocks) {}

  Bench(const TinyModel& model, std::size_t blocks, SchedulerLimits limits, std::unique_ptr<Ops> ops,
        std::size_t host_blocks = 0, bool run_ahead = true) {
    EngineOptions options;
    AttentionShape shape;
    shape.layers = model.config.layers, shape.kv_heads = model.config.kv_heads, shape.head_dim = model.config.head_dim;
    options.kv_bytes = blocks * ops->kv_block_bytes(shape);
    options.host_bytes = host_blocks * ops->kv_block_bytes(shape);
    options.limits = limits;
    options.queue_max = 10000;
    options.check_when_idle = true;
    options.run_ahead = run_ahead;
    engine_ = std::make_unique<Engine>(std::move(ops), model.config, model.open(), options,
                                       [this](std::vector<Event>&& events) { take(events); });
    courier_ = std::thread([this] { deliver(); });
  }

  ~Bench() {
    {
      const std::scoped_lock lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    courier_.join();
  }

  Engine& engine() { return *engine_; }

  std::uint32_t submit(Request request) {
    const bool constrained = request.mask.has_value();
    const std::scoped_lock lock(mutex_);  // before its first token can be taken
    const std::uint32_t handle = engine_->submit(std::move(request));
    if (constrained) constrained_.insert(handle);
    return handle;
  }

  Answer wait(std::uint32_t handle) {
    std::unique_lock lock(mutex_);
    CHECK(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return ended(handle); }),
          concat("no end of ", handle));
    return answers_[handle];
  }
  Answer ask(Request request) { return wait(submit(std::move(request))); }

 private:
  bool ended(std::uint32_t handle) { return answers_[handle].finish || !answers_[handle].failure.empty(); }
  void take(const std::vector<Event>& events) {
    const std::scoped_lock lock(mutex_);
    for (const Event& event : events) {
      if (const auto* token = std::get_if<TokenEvent>(&event)) {
        CHECK(!ended(token->handle));
        answers_[token->handle].tokens.push_back(token->sampled.token);
        if (constrained_.contains(token->handle)) owed_.push_back(token->handle);
      } else if (const auto* finish = std::get_if<FinishEvent>(&event)) {
        CHECK(!ended(finish->handle));
        answers_[finish->handle].finish = *finish;
      } else {
        const auto& failure = std::get<FailureEvent>(event);
        answers_[failure.handle].failure = failure.message;
      }
    }
    changed_.notify_all();
  }

  void deliver() {
    std::mt19937 random(1);
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closing_ || !owed_.empty(); });
      if (closing_) return;
      for (const std::uint32_t handle : std::exchange(owed_, {})) {
        const std::size_t generated = answers_[handle].tokens.size();
        lock.unlock();
        if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
        engine_->mask(handle, mask_at(generated));
        lock.lock();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint32_t, Answer> answers_;
  std::set<std::uint32_t> constrained_;
  std::vector<std::uint32_t> owed_;
  bool closing_ = false;
  std::unique_ptr<Engine> engine_;
  std::thread courier_;
};

inline Request request_of(std::mt19937& random, std::size_t longest) {
  // A few families of prompts, so that prefixes are shared.
  Request request;
  const unsigned family = static_cast<unsigned>(random() % 4);
  const std::size_t length = 1 + random() % longest;
  for (std::size_t i = 0; i < length; ++i)
    request.tokens.push_back(static_cast<TokenId>((family * 31 + i * i * 7 + i) % 97));
  request.sampling.temperature = random() % 2 == 0 ? 0 : 1.0;
  request.sampling.top_k = random() % 2 == 0 ? 0 : 10;
  request.sampling.seed = family;
  request.sampling.max_tokens = 1 + random() % 24;
  request.salt = std::string(random() % 3, 'x');
  request.shared_prefix = random() % 2 == 0 ? 0 : length / 2;
  request.priority = static_cast<int>(random() % 3);
  if (random() % 3 == 0) request.mask = mask_at(0);
  return request;
}

}  // namespace engine_bench
