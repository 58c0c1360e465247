// Two steps under way on a device that does everything as late as it may: what the host overwrites or reads too early
// shows in the answers.

#include <optional>

#include "cuda_device.h"
#include "cuda_running.h"
#include "emulation/streams.h"
#include "engine_interleave.h"

namespace {

using namespace running;

using LazyStreams = While<cuda::set_lazy_streams>;

TEST("emulation: a lazy stream copies what lies there when somebody waits, and an event is reached before what follows it") {
  using namespace device;
  const LazyStreams lazy;
  const auto stream = create_stream();
  const auto event = create_event();
  int host = 1, back = 0, later = 0;
  auto* there = static_cast<int*>(allocate_device(sizeof(int)));
  wait(event);
  copy_to_device(stream, there, &host, sizeof host);
  copy_to_host(stream, &back, there, sizeof back);
  record(event, stream);
  copy_to_host(stream, &later, there, sizeof later);
  host = 2;
  CHECK(back == 0);
  const std::size_t before = waits_with_work_behind();
  wait(event);
  wait(event);
  CHECK(back == 2 && later == 0 && waits_with_work_behind() == before + 1);
  free_device(there);  // waits, as CUDA's does
  CHECK(later == 2);
  destroy_event(event);
  destroy_stream(stream);
}

TEST("emulation: an engine that runs ahead answers as the CPU's, on a device that is always late") {
  const TinyModel model;
  Running reference(model, on_cpu());
  auto asked = requests(model.config.tokenizer_vocab, {1, 15, 33, 16, 14}, 6);  // too many at once to guess
  const auto whole = reference.answers(asked);
  for (const std::size_t i : {1, 4}) asked[i].sampling.stop = {whole[i][2 + i / 2]};
  asked[3].sampling.max_tokens = 1, asked[2].sampling.min_tokens = 4;
  const auto want = reference.answers(asked);
  const LazyStreams lazy;
  const std::size_t waits = cuda::waits_with_work_behind();
  Running running(model, on_cuda(Precision::f32), 12);
  const std::uint32_t cancelled = running.engine().submit(asked.front());
  running.engine().cancel(cancelled);
  CHECK(running.answers(asked) == want);
  CHECK(running.end_of(cancelled).empty());
  running.engine().check_integrity();
  const EngineStats stats = running.engine().stats();
  const std::size_t behind = cuda::waits_with_work_behind() - waits;
  CHECK(stats.steps_ahead > 4 && behind * 4 > stats.steps_ahead * 3,
        concat(behind, " waits with a step behind, ", stats.steps_ahead, " ahead of ", stats.steps));
}

TEST("emulation: a row that the device leaves to the host takes its row of the step ahead with it") {
  const TinyModel model;
  auto asked = requests(model.config.tokenizer_vocab, {9, 15, 16, 20}, 5);
  for (Request& request : asked) request.sampling.temperature = 3;
  asked[1].sampling.top_k = cuda::kTopKMax - 500, asked[3].sampling.top_k = 90;
  for (Request& request : asked) request.sampling.top_p = 0.999;
  asked[0].sampling.temperature = 1e-309;  // beyond what the kernel scales by
  Running reference(model, on_cpu());
  const auto want = reference.answers(asked);
  const LazyStreams lazy;
  Running running(model, on_cuda(Precision::f32));
  CHECK(running.answers(asked) == want);
  CHECK(running.engine().stats().steps_ahead > 0);
  running.engine().check_integrity();
}

TEST("soak: interleavings on an emulated device that is at once, or always late") {
  for (unsigned seed = 1; seed <= 6; ++seed) {
    std::optional<LazyStreams> lazy;
    if (seed % 2 == 0) lazy.emplace();
    const auto ahead = engine_bench::interleave_ahead(seed, 30, [](unsigned, std::size_t rows_max) {
      return std::make_unique<CudaOps>(CudaOptions{Precision::f32, false, true, rows_max});
    });
    CHECK(ahead > 0);
  }
}

}  // namespace
