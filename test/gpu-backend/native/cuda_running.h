#pragma once

// An engine on the CPU or on CUDA and its answers, for tests that compare the two.

#include <algorithm>
#include <condition_variable>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "check.h"
#include "engine/engine.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cuda/cuda_ops.h"

namespace running {

/** Turns something of the emulation on while it lives. */
template <void (*Turn)(bool)>
struct While {
  While() { Turn(true); }
  ~While() { Turn(false); }
  While(const While&) = delete;
  While& operator=(const While&) = delete;
};

using namespace qe;
using cuda::CudaOps;
using cuda::CudaOptions;
using Precision = CudaOptions::Precision;
using Tokens = std::vector<TokenId>;

inline SchedulerLimits limits() {
  SchedulerLimits limits;
  limits.chunk = 40, limits.chunk_beside = 8, limits.batch = 8;
  return limits;
}

/** An engine and its answers. */
class Running {
 public:
  template <class Model>
  Running(const Model& model, std::unique_ptr<Ops> ops, std::size_t blocks = 64, bool run_ahead = true) {
    AttentionShape shape;
    shape.layers = model.config.layers, shape.kv_heads = model.config.kv_heads, shape.head_dim = model.config.head_dim;
    EngineOptions options;
    options.kv_bytes = blocks * ops->kv_block_bytes(shape);
    options.limits = limits();
    options.check_when_idle = true;
    options.run_ahead = run_ahead;
    engine_ = std::make_unique<Engine>(std::move(ops), model.config, model.open(), options, [this](std::vector<Event>&& events) {
      const std::scoped_lock lock(mutex_);
      for (const Event& event : events) {
        if (const auto* token = std::get_if<TokenEvent>(&event)) answers_[token->handle].push_back(token->sampled.token);
        if (const auto* finish = std::get_if<FinishEvent>(&event)) ends_[finish->handle] = "";
        if (const auto* failure = std::get_if<FailureEvent>(&event)) ends_[failure->handle] = failure->message;
      }
      changed_.notify_all();
    });
  }

  Engine& engine() { return *engine_; }

  std::vector<Tokens> answers(const std::vector<Request>& requests) {
    std::vector<std::uint32_t> handles;
    for (const Request& request : requests) handles.push_back(engine_->submit(request));
    std::vector<Tokens> all;
    for (const std::uint32_t handle : handles) {
      const std::string why = end_of(handle);
      CHECK(why.empty(), why);
      const std::scoped_lock lock(mutex_);
      all.push_back(answers_[handle]);
    }
    return all;
  }

  /** Waits for the request's end, or for that of the engine (kEngineHandle); @returns why it failed, or "". */
  std::string end_of(std::uint32_t handle) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ends_.contains(handle); });
    return ends_[handle];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint32_t, Tokens> answers_;
  std::map<std::uint32_t, std::string> ends_;
  std::unique_ptr<Engine> engine_;
};

inline std::unique_ptr<Ops> on_cuda(Precision precision, bool deterministic = false, bool graphs = true) {
  return std::make_unique<CudaOps>(CudaOptions{precision, deterministic, graphs, std::max(limits().chunk, limits().batch + limits().chunk_beside)});
}
inline std::unique_ptr<Ops> on_cpu() { return std::make_unique<cpu::CpuOps>(1); }

/** Prompts of these lengths, some sharing their beginning, greedy or sampled. */
inline std::vector<Request> requests(std::size_t vocab, std::initializer_list<std::size_t> lengths, std::size_t answer) {
  std::vector<Request> all;
  for (const std::size_t length : lengths) {
    Request request;
    for (std::size_t i = 0; i < length; ++i) request.tokens.push_back(static_cast<TokenId>((i * 37 + (i > 18 ? length : 0) + 5) % vocab));
    request.sampling.max_tokens = answer;
    if (all.size() % 3 == 2) request.sampling.temperature = 0.9, request.sampling.top_k = 20, request.sampling.seed = length;
    all.push_back(std::move(request));
  }
  return all;
}

}  // namespace running
