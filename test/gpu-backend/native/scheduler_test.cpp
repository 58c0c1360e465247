// The parts of the scheduler that need no model: how large a chunk may be, and what is guessed ahead.

#include "base/error.h"
#include "check.h"
#include "scheduler/chunk_controller.h"
#include "scheduler/prompt_lookup.h"

namespace {

using namespace qe;

/** Steps of a machine where a prompt token costs `token_ms` and decoding `idle_ms`; @returns the last step's length. */
double settle(ChunkController& chunks, double idle_ms, double token_ms) {
  for (int i = 0; i < 20; ++i) chunks.observe(4, 0, idle_ms);
  double ms = 0;
  for (int i = 0; i < 60; ++i) {
    const std::size_t tokens = chunks.budget();
    ms = idle_ms + token_ms * static_cast<double>(tokens);
    chunks.observe(4, tokens, ms);
  }
  return ms;
}

TEST("scheduler: chunks beside decode stretch a step to about twice its length, on any machine") {
  for (const double token_ms : {0.01, 0.2, 1.0, 3.0}) {
    ChunkController chunks(512);
    const double ms = settle(chunks, 30, token_ms);
    CHECK(ms < 2.5 * 30, concat(ms));
    CHECK(ms > 1.5 * 30 || chunks.budget() == 512, concat(ms));
  }
}

TEST("scheduler: chunks follow a machine that slows down, keep to the limit, and never stop") {
  ChunkController chunks(64);
  CHECK(chunks.budget() == 16);
  settle(chunks, 10, 0.001);
  CHECK(chunks.budget() == 64);
  CHECK(settle(chunks, 10, 0.5) < 25);
  settle(chunks, 1, 1000);
  CHECK(chunks.budget() == ChunkController::kLeast);
  CHECK(ChunkController(1).budget() == 1);
  chunks.observe(0, 512, 1e6);  // nobody waits for a step that only prefills
  CHECK(chunks.budget() == ChunkController::kLeast);
}

TEST("scheduler: what followed the last three tokens before is guessed, else the last two, the latest first") {
  const auto guess = [](std::vector<TokenId> tokens, std::size_t most) {
    std::vector<TokenId> draft{99};
    look_up(tokens, most, draft);
    return draft;
  };
  using Tokens = std::vector<TokenId>;
  CHECK(guess({1, 2, 3, 4, 5, 1, 2, 3}, 2) == (Tokens{4, 5}));
  CHECK(guess({1, 2, 3, 4, 5, 1, 2, 3}, 9) == (Tokens{4, 5, 1, 2, 3}));
  CHECK(guess({1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3}, 1) == (Tokens{7}));
  CHECK(guess({2, 3, 7, 9, 2, 3, 8, 1, 2, 3}, 1) == (Tokens{8}));
  CHECK(guess({5, 5, 5, 5}, 3) == (Tokens{5}));
  CHECK(guess({1, 2, 3, 4}, 3).empty());
  CHECK(guess({1, 2}, 3).empty());
  CHECK(guess({}, 3).empty());
  CHECK(guess({1, 2, 1, 2, 1, 2}, 0).empty());
}

}  // namespace
