#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "sampler/sampler.h"

namespace qe {

enum class FinishReason : std::uint8_t { stop, length, cancelled, deadline };

struct TokenEvent {
  std::uint32_t handle;
  bool with_logprobs;
  Sampled sampled;
};

struct FinishEvent {
  std::uint32_t handle;
  FinishReason reason;
  std::size_t prompt, cached, completion;  // tokens; the stop token is neither emitted nor counted
  double queue_ms, prefill_ms, decode_ms;
};

/** In place of a request's handle: the engine itself. */
inline constexpr std::uint32_t kEngineHandle = 0;

/** The request ended without an answer; sending it again may help. */
struct FailureEvent {
  std::uint32_t handle;
  std::string message;
};

using Event = std::variant<TokenEvent, FinishEvent, FailureEvent>;

/** Called on the engine's thread with everything one step produced; must not block or throw. */
using Sink = std::function<void(std::vector<Event>&&)>;

}  // namespace qe
