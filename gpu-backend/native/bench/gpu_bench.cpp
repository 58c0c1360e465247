// qe_gpu_bench SIZE RESULTS.json FOLDER: what the engine does on this GPU with random weights of one of Qwen2's shapes,
// which it writes into the folder. Each figure stands beside its physical bound: the bytes that must move at the copy
// bandwidth measured here, or the arithmetic at the speed of a large product measured here, whichever takes longer.
// Leaves logits in FOLDER/logits.bin (tokens, vocabulary, the tokens' ids; then floats [tokens][vocabulary]) for
// transformers_peer.py, which compares them and adds its own rows.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <string_view>

#include "bench/machine_bounds.h"
#include "bench/random_model.h"
#include "bench/results.h"
#include "engine/engine.h"
#include "ops/cuda/cuda_ops.h"

namespace qe::bench {
namespace {

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

/** Notes when tokens come. */
struct Watch {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint32_t, std::vector<Clock::time_point>> tokens;
  std::map<std::uint32_t, std::string> ended;

  void take(const std::vector<Event>& events) {
    const std::scoped_lock lock(mutex);
    for (const Event& event : events) {
      if (const auto* token = std::get_if<TokenEvent>(&event)) tokens[token->handle].push_back(Clock::now());
      if (const auto* finish = std::get_if<FinishEvent>(&event)) ended[finish->handle] = "";
      if (const auto* failure = std::get_if<FailureEvent>(&event)) ended[failure->handle] = failure->message;
    }
    changed.notify_all();
  }
  void wait(const std::vector<std::uint32_t>& handles) {
    std::unique_lock lock(mutex);
    for (const std::uint32_t handle : handles) {
      changed.wait(lock, [&] { return ended.contains(handle); });
      if (!ended[handle].empty()) throw Error(ErrorCode::internal, ended[handle]);
    }
  }
};

std::vector<TokenId> random_tokens(std::size_t count, unsigned seed, std::size_t vocab) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % vocab);
  return tokens;
}

class Bench {
 public:
  Bench(const Shape& shape, const std::string& results, const std::string& folder)
      : shape_(shape),
        lengths_(lengths_of(shape)),
        bounds_(MachineMeter(shape.vocab < 10000).measure()),
        results_(results, head()),
        folder_(folder),
        model_(shape, folder) {
    EngineOptions options;
    options.limits.batch = 256, options.limits.chunk = 2048, options.limits.chunk_beside = 512;
    options.queue_max = 1024;
    options.run_ahead = runs_ahead();
    cuda::CudaOptions cuda;
    cuda.rows_max = options.limits.rows_max();
    auto ops = std::make_unique<cuda::CudaOps>(cuda);
    constexpr std::size_t kReserve = std::size_t{2} << 30;
    const std::size_t free = ops->device().free;
    if (model_.bytes() + kReserve > free)
      throw Error(ErrorCode::invalid_request, concat(shape.name, " takes ", model_.bytes(), " bytes of weights and ",
                                                     kReserve, " beside them; ", free, " are free"));
    options.kv_bytes = std::min(
        (lengths_.batches.back() * 2 * (lengths_.prompt + lengths_.output) + 4 * lengths_.prefix) * shape.kv_bytes(),
        free - model_.bytes() - kReserve);
    const auto start = Clock::now();
    engine_ = std::make_unique<Engine>(std::move(ops), model_.config, model_.open(), options,
                                       [this](std::vector<Event>&& events) { watch_.take(events); });
    const double bytes = static_cast<double>(model_.bytes());
    results_.add({"load", 0, 0, 0, bytes / seconds(Clock::now() - start) / 1e9, "GB/s", bounds_.host_bytes / 1e9,
                  "copies from the host"});
  }

  void run() {
    write_logits();
    ask(1, lengths_.prompt / 2, 8, 1);  // warm
    for (const std::size_t batch : lengths_.batches) decode(batch);
    const auto [prefill, prefill_by] = least_seconds(lengths_.prefill, 0);
    const auto tokens = static_cast<double>(lengths_.prefill);
    results_.add({"prefill", 1, lengths_.prefill, 1, tokens / first(lengths_.prefill, 8), "tokens/s", tokens / prefill,
                  prefill_by});
    const auto [cold, cold_by] = least_seconds(lengths_.prefix, 0);
    results_.add({"ttft cold", 1, lengths_.prefix, 1, first(lengths_.prefix, 7), "s", cold, cold_by, true});
    const auto [warm, warm_by] = least_seconds(kBlockSize, lengths_.prefix - kBlockSize);
    results_.add({"ttft warm", 1, lengths_.prefix, 1, first(lengths_.prefix, 7), "s", warm, warm_by, true});
  }

 private:
  static bool runs_ahead() {
    const char* given = std::getenv("RUN_AHEAD");
    return given == nullptr || std::string_view(given) != "off";
  }

  std::string head() const {
    const std::time_t now = std::time(nullptr);
    char date[32];
    std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    std::string batches;
    for (const std::size_t batch : lengths_.batches) batches += (batches.empty() ? "" : ", ") + std::to_string(batch);
    return concat(R"("card": ")", cuda::device().name, R"(", "date": ")", date, R"(", "model": ")", shape_.name,
                  R"(", "weights": "random", "run_ahead": )", runs_ahead() ? "true" : "false",
                  R"(, "copy_bytes_per_s": )", bounds_.device_bytes,
                  ", \"host_copy_bytes_per_s\": ", bounds_.host_bytes, ", \"product_flops\": ", bounds_.flops,
                  R"(, "product_by": ")", bounds_.product, "\",\n \"batches\": [", batches,
                  "], \"prompt\": ", lengths_.prompt, ", \"output\": ", lengths_.output,
                  ", \"prefill\": ", lengths_.prefill, ", \"prefix\": ", lengths_.prefix);
  }

  std::vector<std::uint32_t> ask(std::size_t count, std::size_t prompt, std::size_t answer, unsigned seed) {
    std::vector<std::uint32_t> handles;
    for (std::size_t i = 0; i < count; ++i) {
      Request request;
      request.tokens = random_tokens(prompt, seed + static_cast<unsigned>(i), shape_.vocab);
      request.sampling.max_tokens = answer;
      handles.push_back(engine_->submit(std::move(request)));
    }
    watch_.wait(handles);
    return handles;
  }

  /** Seconds to the first token. */
  double first(std::size_t prompt, unsigned seed) {
    const auto start = Clock::now();
    return seconds(watch_.tokens[ask(1, prompt, 1, seed).front()].front() - start);
  }

  /** What one sequence's `tokens`, after `cached` others, take at least, and why. */
  [[nodiscard]] std::pair<double, const char*> least_seconds(std::size_t tokens, std::size_t cached) const {
    const auto rows = static_cast<double>(tokens), before = static_cast<double>(cached);
    return slower(shape_.step_bytes(model_.bytes()) + (tokens + cached) * shape_.kv_bytes(),
                  shape_.flops(rows, 1, before + rows / 2));
  }
  [[nodiscard]] std::pair<double, const char*> slower(std::size_t bytes, double flops) const {
    const double moving = static_cast<double>(bytes) / bounds_.device_bytes, computing = flops / bounds_.flops;
    return moving > computing ? std::pair{moving, "memory"} : std::pair{computing, "arithmetic"};
  }

  void decode(std::size_t batch) {
    ask(batch, lengths_.prompt, 2, static_cast<unsigned>(batch * 1000 + 500));  // captures its graph
    const auto handles = ask(batch, lengths_.prompt, lengths_.output, static_cast<unsigned>(batch * 1000));
    // From when the last of them has its first token to when the first of them has its last.
    Clock::time_point begin{}, end = Clock::time_point::max();
    for (const std::uint32_t handle : handles)
      begin = std::max(begin, watch_.tokens[handle].front()), end = std::min(end, watch_.tokens[handle].back());
    if (end <= begin)
      throw Error(ErrorCode::internal, concat("no step decoded all ", batch, " sequences: use a longer output"));
    std::size_t tokens = 0;
    for (const std::uint32_t handle : handles)
      tokens += static_cast<std::size_t>(
          std::ranges::count_if(watch_.tokens[handle], [&](auto at) { return at > begin && at <= end; }));
    const std::size_t context = lengths_.prompt + lengths_.output / 2;
    const auto rows = static_cast<double>(batch);
    const auto [least, by] = slower(shape_.step_bytes(model_.bytes()) + batch * context * shape_.kv_bytes(),
                                    shape_.flops(rows, rows, static_cast<double>(context)));
    results_.add({"decode", batch, lengths_.prompt, lengths_.output, static_cast<double>(tokens) / seconds(end - begin),
                  "tokens/s", rows / least, by});
  }

  void write_logits() {
    if (lengths_.compared == 0) return;
    const std::vector<TokenId> tokens = random_tokens(lengths_.compared, 99, shape_.vocab);
    const std::vector<float> logits = engine_->logits(tokens, 64);
    std::ofstream out(folder_ + "/logits.bin", std::ios::binary);
    const auto write = [&](const auto& values) {
      out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * 4));
    };
    write(std::vector{static_cast<std::uint32_t>(tokens.size()), static_cast<std::uint32_t>(shape_.vocab)});
    write(tokens);
    write(logits);
    if (!out.flush()) throw Error(ErrorCode::internal, "no room for the logits in " + folder_);
  }

  Shape shape_;
  Lengths lengths_;
  MachineBounds bounds_;
  Results results_;
  std::string folder_;
  RandomModel model_;
  Watch watch_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace
}  // namespace qe::bench

int main(int argc, char** argv) {
  try {
    if (const auto why = qe::cuda::unavailable()) throw qe::Error(qe::ErrorCode::invalid_request, *why);
    for (const auto& shape : qe::bench::kShapes)
      if (argc == 4 && std::string(shape.name) == argv[1]) {
        qe::bench::Bench(shape, argv[2], argv[3]).run();
        return 0;
      }
    std::cerr << "usage: qe_gpu_bench tiny|0.5B|1.5B|7B|72B-Int4 RESULTS.json FOLDER\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
  }
  return 1;
}
