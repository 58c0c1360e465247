#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <future>
#include <utility>

#include "base/error.h"

namespace qe {
namespace {

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

std::size_t blocks_in(const EngineOptions& options, const Ops& ops, const AttentionShape& shape) {
  const std::size_t blocks = options.kv_bytes / ops.kv_block_bytes(shape);
  if (blocks < 2)
    throw Error(ErrorCode::invalid_request,
                concat("KV memory of ", options.kv_bytes, " bytes holds ", blocks, " blocks of ", kBlockSize,
                       " tokens (", ops.kv_block_bytes(shape), " bytes each); at least 2 are wanted"));
  return std::min<std::size_t>(blocks, 0xffffffff);
}

}  // namespace

Engine::Engine(std::unique_ptr<Ops> ops, const ModelConfig& config, std::unique_ptr<Checkpoint> checkpoint,
               EngineOptions options, Sink sink)
    : checkpoint_(std::move(checkpoint)),
      ops_(std::move(ops)),
      options_(std::move(options)),
      sink_(std::move(sink)),
      model_((config.check(), config), *checkpoint_, *ops_, options_.limits.rows_max()),
      cache_(blocks_in(options_, *ops_, model_.attention_shape()),
             concat(options_.identity, " fp32 ", ops_->level(), " theta ", config.rope_theta)),
      scheduler_(cache_, options_.limits),
      chunks_(options_.limits.chunk_beside) {
  ops_->allocate_kv(model_.attention_shape(), cache_.total());
  if (options_.host_bytes > 0)
    cache_.set_host_tier(std::make_unique<HostTier>(
        options_.host_bytes, ops_->kv_block_bytes(model_.attention_shape()),
        HostTier::Copies{[this](BlockId block, std::byte* to) { ops_->save_block(block, to); },
                         [this](BlockId block, const std::byte* from) { ops_->load_block(block, from); }}));
  publish_stats();
  thread_ = std::thread([this] { loop(); });
}

Engine::~Engine() { close(); }

std::uint32_t Engine::submit(Request request) {
  const auto refuse = [](const std::string& why) { throw Error(ErrorCode::invalid_request, why); };
  const ModelConfig& config = model_.config();
  const std::size_t prompt = request.tokens.size();
  if (prompt == 0) refuse("the prompt is empty");
  for (const TokenId token : request.tokens)
    if (token >= config.tokenizer_vocab)
      refuse(concat("token id ", token, " is outside the vocabulary of ", config.tokenizer_vocab));
  if (prompt + request.sampling.max_tokens > config.context)
    refuse(concat("prompt of ", prompt, " + max_tokens of ", request.sampling.max_tokens, " exceeds the context of ",
                  config.context, " tokens"));
  const std::size_t room = prompt + request.sampling.max_tokens;
  if (!scheduler_.fits(room))
    refuse(concat(room, " tokens exceed the KV memory of ", cache_.total() * kBlockSize, " tokens"));

  Sequence sequence;
  sequence.tokens = std::move(request.tokens);
  sequence.tokens.reserve(room);
  sequence.prompt = prompt;
  sequence.room = room;
  sequence.salt = std::move(request.salt);
  sequence.shared_prefix = std::min(request.shared_prefix, prompt);
  sequence.priority = request.priority;
  sequence.submitted = Clock::now();
  if (request.deadline_ms > 0)
    sequence.deadline = sequence.submitted + std::chrono::microseconds(std::llround(request.deadline_ms * 1000));
  if (request.pin_ms > 0 && request.sampling.max_tokens == 0) {
    if (prompt / kBlockSize > cache_.total() / 2)
      refuse(concat("a pinned prefix may take half of the KV memory, ", cache_.total() / 2 * kBlockSize, " tokens"));
    sequence.pin_until = sequence.submitted + std::chrono::microseconds(std::llround(request.pin_ms * 1000));
  }
  sequence.constrained = request.mask.has_value();
  Sampler sampler(std::move(request.sampling), config.tokenizer_vocab, sequence.tokens);
  auto generation = std::make_unique<Generation>(std::move(sequence), std::move(sampler), std::move(request.mask));

  const std::scoped_lock lock(mutex_);
  if (closing_) throw closed_error();
  if (incoming_.size() + shown_.waiting >= options_.queue_max)
    throw Error(ErrorCode::queue_full, concat("the queue of ", options_.queue_max, " requests is full"));
  const std::uint32_t handle = next_handle_++;
  generation->sequence.handle = handle;
  generation->sequence.arrival = handle;
  incoming_.push_back(std::move(generation));
  wake_.notify_one();
  return handle;
}

void Engine::cancel(std::uint32_t handle) {
  const std::scoped_lock lock(mutex_);
  cancelled_.push_back(handle);
  wake_.notify_one();
}

void Engine::close() {
  {
    const std::scoped_lock lock(mutex_);
    closing_ = true;
    wake_.notify_one();
  }
  const std::scoped_lock lock(joining_);
  if (thread_.joinable()) thread_.join();
}

/** Under the mutex. */
Error Engine::closed_error() const {
  return {ErrorCode::closed, failure_.empty() ? "the engine is closed" : concat("the engine closed by itself: ", failure_)};
}

std::vector<TenantCounters> Engine::tenants() const {
  const std::scoped_lock lock(mutex_);
  return shown_tenants_;
}

EngineStats Engine::stats() const {
  const std::scoped_lock lock(mutex_);
  EngineStats stats = shown_;
  stats.waiting += incoming_.size();
  return stats;
}

void Engine::loop() {
  constexpr auto kDeadlineCheck = std::chrono::milliseconds(10);
  bool worked = false;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      const auto called = [this] {
        return closing_ || !incoming_.empty() || !cancelled_.empty() || !commands_.empty() || !masks_.empty();
      };
      if (generations_.empty() && steps_.empty()) {
        wake_.wait(lock, called);
      } else if (!worked) {  // everybody waits for a mask
        wake_.wait_for(lock, kDeadlineCheck, called);
      }
      if (closing_) break;
    }
    try {
      take_in();
      expire();
      sample_kept();
      worked = step();
      if (generations_.empty() && options_.check_when_idle) scheduler_.check_integrity();
    } catch (const std::exception& error) {
      const auto* ours = dynamic_cast<const Error*>(&error);
      const bool fatal = ours != nullptr && (ours->code() == ErrorCode::device || ours->code() == ErrorCode::integrity);
      if (fatal || generations_.empty()) return end_failed(error.what());
      try {
        fail_all(error.what());
      } catch (const std::exception& worse) {
        return end_failed(worse.what());
      }
    }
    publish_stats();
    if (!events_.empty()) sink_(std::exchange(events_, {}));
  }
  steps_.clear();
  take_in();
  while (!generations_.empty()) finish(generations_.begin()->second->sequence, FinishReason::cancelled);
  publish_stats();
  if (!events_.empty()) sink_(std::exchange(events_, {}));
}

void Engine::take_in() {
  std::vector<std::unique_ptr<Generation>> incoming;
  std::vector<std::uint32_t> cancelled;
  std::vector<std::function<void()>> commands;
  {
    const std::scoped_lock lock(mutex_);
    incoming.swap(incoming_), cancelled.swap(cancelled_);
    if (steps_.empty()) commands.swap(commands_);
    shown_.waiting += incoming.size();  // still counted against the queue until the next snapshot
  }
  for (auto& generation : incoming) {
    Sequence& sequence = generation->sequence;
    ++counters_.requests;
    generations_.emplace(sequence.handle, std::move(generation));
    scheduler_.add(sequence);
  }
  for (const std::uint32_t handle : cancelled)
    if (const auto found = generations_.find(handle); found != generations_.end())
      finish(found->second->sequence, FinishReason::cancelled);
  for (const auto& command : commands) command();
}

void Engine::expire() {
  const Clock::time_point now = Clock::now();
  cache_.unpin(now);
  std::vector<Sequence*> late;
  for (const auto& [handle, generation] : generations_)
    if (generation->sequence.deadline && *generation->sequence.deadline <= now) late.push_back(&generation->sequence);
  for (Sequence* sequence : late) finish(*sequence, FinishReason::deadline);
}

/** Ends a generation: its blocks go back, its last event goes out, and the sequence is gone. A step under way may still
    write to its blocks: before whoever gets them next, since what that one computes is launched later. */
void Engine::finish(Sequence& sequence, FinishReason reason) {
  const Clock::time_point now = Clock::now();
  const bool admitted = sequence.cached.has_value();
  const bool begun = admitted && sequence.first_token != Clock::time_point{};
  FinishEvent event{
      sequence.handle, reason, sequence.prompt, sequence.cached.value_or(0), sequence.generated(), 0, 0, 0};
  event.queue_ms = milliseconds(sequence.submitted, admitted ? sequence.admitted : now);
  if (admitted) event.prefill_ms = milliseconds(sequence.admitted, begun ? sequence.first_token : now);
  if (begun) event.decode_ms = milliseconds(sequence.first_token, now);
  events_.emplace_back(event);
  for (Step& step : steps_)
    for (Slice& slice : step.plan)
      if (slice.sequence == &sequence) slice.sequence = nullptr;
  scheduler_.remove(sequence);
  generations_.erase(sequence.handle);
}

void Engine::fail_all(const std::string& message) {
  steps_.clear();
  while (!generations_.empty()) {
    const auto node = generations_.extract(generations_.begin());
    events_.emplace_back(FailureEvent{node.key(), message});
    scheduler_.remove(node.mapped()->sequence);
  }
}

/** What runs and waits fails, and no more is taken. Nothing here relies on the accounting of blocks, which may be what
 * failed. */
void Engine::end_failed(const std::string& message) {
  {
    const std::scoped_lock lock(mutex_);
    closing_ = true;
    failure_ = message;
  }
  const auto fail = [&] {
    for (const auto& [handle, generation] : generations_) events_.emplace_back(FailureEvent{handle, message});
    steps_.clear();
    scheduler_.abandon();
    generations_.clear();
  };
  fail();
  take_in();  // what came meanwhile
  fail();
  events_.emplace_back(FailureEvent{kEngineHandle, message});
  publish_stats();
  sink_(std::exchange(events_, {}));
}

void Engine::publish_stats() {
  EngineStats stats = counters_;
  stats.blocks_total = cache_.total(), stats.blocks_free = cache_.free();
  stats.blocks_cached = cache_.cached(), stats.blocks_used = cache_.used();
  stats.blocks_pinned = cache_.pinned();
  stats.running = scheduler_.running(), stats.waiting = scheduler_.waiting();
  stats.prefix_queries = cache_.counters().queries, stats.prefix_hits = cache_.counters().hits;
  stats.evictions = cache_.counters().evictions;
  stats.host_blocks = cache_.host_blocks(), stats.host_loads = cache_.host_loads();
  stats.preemptions = scheduler_.preemptions();
  const Clock::time_point now = Clock::now();
  const std::scoped_lock lock(mutex_);
  shown_ = stats;
  if (!generations_.empty() && now - tenants_shown_at_ < std::chrono::seconds(1)) return;
  shown_tenants_ = cache_.tenants().all();
  tenants_shown_at_ = now;
}

void Engine::run_between_steps(std::function<void()> command) {
  // Shared: the waiter may return while the engine's thread is still leaving the task.
  const auto task = std::make_shared<std::packaged_task<void()>>(std::move(command));
  std::future<void> done = task->get_future();
  {
    const std::scoped_lock lock(mutex_);
    if (closing_) throw closed_error();
    commands_.emplace_back([task] { (*task)(); });
    wake_.notify_one();
  }
  done.get();
}

void Engine::check_integrity() {
  run_between_steps([this] { scheduler_.check_integrity(); });
}

std::vector<float> Engine::logits(std::span<const TokenId> tokens, std::size_t chunk) {
  const ModelConfig& config = model_.config();
  for (const TokenId token : tokens)
    if (token >= config.vocab) throw Error(ErrorCode::invalid_request, concat("token id ", token, " has no embedding"));
  if (tokens.size() > config.context) throw Error(ErrorCode::invalid_request, "the prompt exceeds the context");
  std::vector<float> all;
  run_between_steps([&] {
    std::vector<BlockId> blocks;
    const auto give_back = [&] {
      for (const BlockId block : blocks) cache_.release(block);
    };
    try {
      while (blocks.size() < div_up(tokens.size(), kBlockSize)) {
        const auto block = cache_.allocate();
        if (!block) throw Error(ErrorCode::queue_full, "no KV memory is free for the prompt");
        blocks.push_back(*block);
      }
      const std::size_t step = std::clamp<std::size_t>(chunk, 1, options_.limits.rows_max());
      for (std::size_t first = 0; first < tokens.size(); first += step) {
        batch_.clear();
        const std::size_t count = std::min(step, tokens.size() - first);
        batch_.slices.push_back({0, count, first, blocks});
        for (std::size_t i = 0; i < count; ++i) {
          batch_.tokens.push_back(tokens[first + i]);
          batch_.positions.push_back(first + i);
          batch_.logit_rows.push_back(i);
        }
        model_.launch(batch_);
        const std::span<const float> rows = model_.logits(batch_.turn, 0, count);
        all.insert(all.end(), rows.begin(), rows.end());
      }
    } catch (...) {
      give_back();
      throw;
    }
    give_back();
  });
  return all;
}

}  // namespace qe
