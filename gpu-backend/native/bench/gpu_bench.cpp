// qe_gpu_bench SIZE RESULTS.json: what the engine does on this GPU with random weights of one of Qwen2's shapes.
// Every row is printed and the whole file written again as soon as the row is known, so that a run cut short leaves
// what it measured. Decode stands beside its bound: the weights' bytes at the copy bandwidth measured here.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>

#include "bench/shapes.h"
#include "engine/engine.h"
#include "ops/cuda/cuda_ops.h"

namespace qe::bench {
namespace {

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

/** Counts tokens as they come. */
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

Request request(std::size_t prompt, std::size_t answer, unsigned seed, std::size_t vocab) {
  Request request;
  std::mt19937 random(seed);
  for (std::size_t i = 0; i < prompt; ++i) request.tokens.push_back(static_cast<TokenId>(random() % vocab));
  request.sampling.max_tokens = answer;
  return request;
}

struct Copy {
  cuda::Stream stream;
  float *to, *from;
  std::size_t floats;
};

/** Bytes read and written a second by a copy on the device. */
double copy_bandwidth() {
  constexpr std::size_t kFloats = std::size_t{1} << 28, kRounds = 10;
  Copy copy{cuda::create_stream(), static_cast<float*>(cuda::allocate_device(kFloats * 4)),
            static_cast<float*>(cuda::allocate_device(kFloats * 4)), kFloats};
  const auto work = [](void* argument) {
    const auto& c = *static_cast<Copy*>(argument);
    for (std::size_t i = 0; i < kRounds; ++i) cuda::copy_on_device(c.stream, c.to, c.from, c.floats * 4);
  };
  cuda::measure_ms(copy.stream, work, &copy);
  const double ms = cuda::measure_ms(copy.stream, work, &copy);
  cuda::free_device(copy.to), cuda::free_device(copy.from), cuda::destroy_stream(copy.stream);
  return 2.0 * kRounds * kFloats * 4 / (ms / 1e3);
}

/** Rows of name and value, as JSON. */
class Results {
 public:
  Results(std::string file, std::string head) : file_(std::move(file)), head_(std::move(head)) {}
  void add(const std::string& row) {
    rows_ += (rows_.empty() ? "" : ",\n") + ("  " + row);
    std::cout << row << std::endl;
    std::ofstream(file_) << "{" << head_ << ",\n \"rows\": [\n" << rows_ << "\n]}\n";
  }

 private:
  std::string file_, head_, rows_;
};

void run(const Shape& shape, const std::string& file, const std::string& folder) {
  if (const auto why = cuda::unavailable()) throw Error(ErrorCode::invalid_request, *why);
  const cuda::Device device = cuda::device();
  const double bandwidth = copy_bandwidth();
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  Results results(file, concat("\"card\": \"", device.name, "\", \"date\": \"", date, "\", \"model\": \"", shape.name,
                               "\", \"copy_bytes_per_s\": ", bandwidth));

  const RandomModel model(shape, folder + "/qe-bench-" + shape.name);
  EngineOptions options;
  options.limits.batch = 256, options.limits.chunk = 2048, options.limits.chunk_beside = 512;
  options.queue_max = 1024;
  cuda::CudaOptions cuda;
  cuda.rows_max = options.limits.chunk;
  auto ops = std::make_unique<cuda::CudaOps>(cuda);
  const std::size_t weights = model.bytes();
  if (weights + (std::size_t{2} << 30) > device.free)
    throw Error(ErrorCode::invalid_request, concat(shape.name, " takes ", weights, " bytes of weights, ", device.free, " are free"));
  options.kv_bytes = std::min<std::size_t>(device.free - weights - (std::size_t{2} << 30), std::size_t{24} << 30);
  Watch watch;
  const auto loading = Clock::now();
  Engine engine(std::move(ops), model.config, model.open(), options, [&](std::vector<Event>&& events) { watch.take(events); });
  const double load = seconds(Clock::now() - loading);
  results.add(concat("{\"what\": \"load\", \"seconds\": ", load, ", \"gb_per_s\": ", static_cast<double>(weights) / load / 1e9, "}"));

  const auto ask = [&](std::size_t count, std::size_t prompt, std::size_t answer, unsigned seed) {
    std::vector<std::uint32_t> handles;
    for (std::size_t i = 0; i < count; ++i)
      handles.push_back(engine.submit(request(prompt, answer, seed + static_cast<unsigned>(i), shape.vocab)));
    watch.wait(handles);
    return handles;
  };
  ask(1, 64, 8, 1);  // warm

  for (const std::size_t batch : {1, 8, 64, 256}) {
    if (shape.int4 && batch > 64) continue;
    constexpr std::size_t kPrompt = 128, kAnswer = 128;
    const auto handles = ask(batch, kPrompt, kAnswer, static_cast<unsigned>(batch * 1000));
    // From when the last of them has its first token to when the first of them has its last.
    Clock::time_point begin{}, end = Clock::time_point::max();
    for (const std::uint32_t handle : handles) begin = std::max(begin, watch.tokens[handle].front()), end = std::min(end, watch.tokens[handle].back());
    std::size_t tokens = 0;
    for (const std::uint32_t handle : handles)
      tokens += static_cast<std::size_t>(std::ranges::count_if(watch.tokens[handle], [&](auto t) { return t > begin && t <= end; }));
    const double rate = end > begin ? static_cast<double>(tokens) / seconds(end - begin) : 0;
    const double embedding = shape.tied ? 0 : static_cast<double>(shape.vocab * shape.hidden * 2);
    const double bound = bandwidth / (static_cast<double>(weights) - embedding) * static_cast<double>(batch);
    results.add(concat("{\"what\": \"decode\", \"batch\": ", batch, ", \"prompt\": ", kPrompt, ", \"answer\": ", kAnswer,
                       ", \"tokens_per_s\": ", rate, ", \"weight_bound_tokens_per_s\": ", bound, ", \"share\": ", rate / bound, "}"));
  }
  const auto first = [&](std::size_t prompt, unsigned seed) {
    const auto start = Clock::now();
    const auto handle = ask(1, prompt, 1, seed).front();
    return seconds(watch.tokens[handle].front() - start);
  };
  const double cold = first(8192, 7), prefill = first(4096, 8);
  results.add(concat("{\"what\": \"prefill\", \"prompt\": 4096, \"tokens_per_s\": ", 4096 / prefill, "}"));
  const double warm = first(8192, 7);
  results.add(concat("{\"what\": \"ttft\", \"prompt\": 8192, \"cold_s\": ", cold, ", \"warm_s\": ", warm, ", \"ratio\": ", cold / warm, "}"));
}

}  // namespace
}  // namespace qe::bench

int main(int argc, char** argv) {
  try {
    for (const auto& shape : qe::bench::kShapes)
      if (argc >= 3 && std::string(shape.name) == argv[1]) {
        qe::bench::run(shape, argv[2], argc > 3 ? argv[3] : "/tmp");
        return 0;
      }
    std::cerr << "usage: qe_gpu_bench tiny|0.5B|1.5B|7B|72B-Int4 RESULTS.json [folder for the weights]\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
  }
  return 1;
}
