#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "cache/prefix_cache.h"
#include "checkpoint/checkpoint.h"
#include "engine/events.h"
#include "engine/row_results.h"
#include "model/qwen2.h"
#include "ops/ops.h"
#include "scheduler/chunk_controller.h"
#include "scheduler/scheduler.h"

namespace qe {

struct EngineOptions {
  std::size_t kv_bytes = 0;     // memory for keys and values
  std::size_t host_bytes = 0;   // host memory for evicted blocks; 0: none
  std::size_t queue_max = 256;  // requests that may wait
  SchedulerLimits limits;
  std::string identity;          // the weights' revision: part of every prefix's name
  bool check_when_idle = false;  // check_integrity() whenever the last request has ended
  bool run_ahead = true;         // launch a step before the tokens of the one before are read, where the device chooses
};

/** One bit a token, in words from id 0 up; no words: nothing may come. */
using TokenMask = std::vector<std::uint32_t>;

struct Request {
  std::vector<TokenId> tokens;
  SamplingParams sampling;  // max_tokens 0 computes the prompt and ends: it warms the prefix cache
  std::string salt;
  std::size_t shared_prefix = 0;  // leading tokens that are operator text
  int priority = 0;               // higher runs first
  double deadline_ms = 0;         // from now; 0: none
  double pin_ms = 0;              // with max_tokens 0: how long the prompt's blocks stay, whatever else wants memory
  std::optional<TokenMask> mask;  // of the first token; then each further token waits for its own, see Engine::mask
};

struct EngineStats {
  std::size_t blocks_total, blocks_free, blocks_cached, blocks_used;
  std::size_t blocks_pinned;  // of those used
  std::size_t running, waiting;
  std::uint64_t prefix_queries, prefix_hits;  // tokens
  std::uint64_t evictions;                    // blocks
  std::size_t host_blocks;                    // evicted blocks kept in host memory
  std::uint64_t host_loads;                   // blocks that came back from there
  std::uint64_t preemptions;
  std::uint64_t prompt_tokens, generated_tokens;  // computed as prefill; sampled
  std::uint64_t requests, steps;                  // a step in which all had ended when it was done does not count
  std::uint64_t steps_ahead;                      // of them launched before the tokens of the step before were read
  std::uint64_t drafted_tokens, accepted_tokens;  // guessed; of them right
};

/**
 * Generates for many requests at once, on a thread of its own. Everything public may be called from any thread.
 *
 * A step is schedule -> launch -> settle (wait for its tokens, postprocess). Where the device chooses tokens, the next
 * step is launched before this one is settled, so that the device works while the host does (steps.cpp). Between steps
 * the thread takes what came in: requests, cancellations, expired deadlines, commands. A step that throws fails the
 * requests it held, retryably, and the engine goes on. When the device failed, the block accounting is wrong, or no
 * request can carry the error, nothing can go on: the engine says so by a FailureEvent of kEngineHandle, is closed, and
 * refuses what comes later with the reason.
 */
class Engine {
 public:
  Engine(std::unique_ptr<Ops> ops, const ModelConfig& config, std::unique_ptr<Checkpoint> checkpoint,
         EngineOptions options, Sink sink);
  /** Cancels what is left and joins. */
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /** @returns the handle its events carry. Throws Error: invalid_request, queue_full, closed. */
  std::uint32_t submit(Request request);
  /** Ends the request within one step; a handle that is unknown or done is ignored. What a step that was launched ahead
      still computes for it is dropped. */
  void cancel(std::uint32_t handle);
  /**
   * What a constrained request's next token may be; its answer ends with `stop` where nothing may come. Logits that
   * were computed before their mask is here are kept, and the sequence is left out of further steps until it is.
   */
  void mask(std::uint32_t handle, TokenMask mask);
  /** Cancels everything, hands out the last events and waits for the thread to end. Idempotent. */
  void close();

  [[nodiscard]] EngineStats stats() const;
  /** The prefix cache's counters by tenant, a second old at most; the first is the operator's, whose text is shared. */
  [[nodiscard]] std::vector<TenantCounters> tenants() const;
  /** With no step under way: throws Error(integrity) if a block is lost or an index disagrees. */
  void check_integrity();
  /** Logits of every token of a prompt, [tokens][vocab], computed in chunks of `chunk` beside the cache. For oracles.
   */
  std::vector<float> logits(std::span<const TokenId> tokens, std::size_t chunk);

  [[nodiscard]] const Ops& ops() const { return *ops_; }
  [[nodiscard]] const ModelConfig& config() const { return model_.config(); }
  [[nodiscard]] std::size_t blocks_total() const { return cache_.total(); }

 private:
  friend struct EngineProbe;  // tests break what it guards

  struct Generation {
    Sequence sequence;
    Sampler sampler;
    std::optional<TokenMask> mask;  // of the next token, where it is constrained and known
    std::vector<float> logits;      // [vocab], of the next token, while its mask is not here
    bool left_to_host = false;      // its last token, by a device that chooses
  };
  /** Launched and not settled. */
  struct Step {
    std::vector<Slice> plan;      // a slice whose sequence has ended meanwhile has none
    std::vector<Choice> choices;  // [logit rows], where the device chooses
    std::size_t logit_rows = 0;
    unsigned turn = 0;
    bool chosen = false;                       // by the device
    bool ahead = false;                        // launched before the tokens of the step before were read
    std::size_t decoding = 0, prefilling = 0;  // tokens
    Clock::time_point launched;
  };

  void loop();
  bool step();
  void take_in();
  void expire();
  bool launch();
  void fill_batch(Step& step);
  std::vector<Choice> choices_of(const std::vector<Slice>& plan) const;
  bool await_tokens();
  void stop_awaiting();
  void take_back(Sequence& sequence);
  void settle();
  void append_sampled(const Step& step, const Slice& slice);
  bool sample(Generation& generation, std::span<const float> logits, TokenId chosen = kUndecided);
  void take_masks();
  void sample_kept();
  void finish(Sequence& sequence, FinishReason reason);
  void fail_all(const std::string& message);
  void end_failed(const std::string& message);
  void publish_stats();
  [[nodiscard]] Error closed_error() const;
  void run_between_steps(std::function<void()> command);

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Ops> ops_;
  EngineOptions options_;
  Sink sink_;
  Qwen2 model_;
  PrefixCache cache_;
  Scheduler scheduler_;
  ChunkController chunks_;
  std::unordered_map<std::uint32_t, std::unique_ptr<Generation>> generations_;  // the engine's thread only
  std::vector<Event> events_;                                                   // of the step under way
  std::deque<Step> steps_;                                                      // under way, two at most
  Clock::time_point settled_{};                                                 // the last one
  Batch batch_;
  RowResults results_{model_};
  EngineStats counters_{};

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Generation>> incoming_;
  std::vector<std::uint32_t> cancelled_;
  std::vector<std::pair<std::uint32_t, TokenMask>> masks_;
  std::vector<std::function<void()>> commands_;
  EngineStats shown_{};
  std::vector<TenantCounters> shown_tenants_;
  Clock::time_point tenants_shown_at_{};
  std::uint32_t next_handle_ = 1;
  bool closing_ = false;
  std::string failure_;  // why it closed by itself

  std::mutex joining_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace qe
