#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "engine/events.h"

namespace qe {

/**
 * Carries events from the engine's thread to JavaScript's: appended under a mutex, drained as one array of doubles.
 * The engine wakes JavaScript only when the box was empty, so at most one wake is ever queued, however slow the other
 * side is. What can pile up is bounded by what was asked for: the max_tokens of the requests that run.
 *
 * Records, in order (native-addon.ts reads them):
 *   0, handle, token, 0
 *   0, handle, token, 1, logprob, count, (token, logprob) * count
 *   1, handle, reason, prompt, cached, completion, queue_ms, prefill_ms, decode_ms
 *   2, handle, index into messages
 */
class Mailbox {
 public:
  struct Letters {
    std::vector<double> records;
    std::vector<std::string> messages;
  };

  /** @returns whether the box was empty before. */
  bool put(const std::vector<Event>& events) {
    const std::scoped_lock lock(mutex_);
    const bool was_empty = letters_.records.empty();
    for (const Event& event : events) std::visit([this](const auto& e) { write(e); }, event);
    return was_empty;
  }

  Letters drain() {
    const std::scoped_lock lock(mutex_);
    Letters letters;
    std::swap(letters, letters_);
    return letters;
  }

 private:
  void push(auto... numbers) { (letters_.records.push_back(static_cast<double>(numbers)), ...); }

  void write(const TokenEvent& e) {
    push(0, e.handle, e.sampled.token, int{e.with_logprobs});
    if (!e.with_logprobs) return;
    push(e.sampled.logprob, e.sampled.top.size());
    for (const TokenLogprob& each : e.sampled.top) push(each.token, each.logprob);
  }
  void write(const FinishEvent& e) {
    push(1, e.handle, static_cast<int>(e.reason), e.prompt, e.cached, e.completion, e.queue_ms, e.prefill_ms,
         e.decode_ms);
  }
  void write(const FailureEvent& e) {
    push(2, e.handle, letters_.messages.size());
    letters_.messages.push_back(e.message);
  }

  std::mutex mutex_;
  Letters letters_;
};

}  // namespace qe
