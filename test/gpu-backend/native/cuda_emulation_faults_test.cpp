// A device that fails under the whole engine: every request ends, retryably, and nothing hangs.

#include "cuda_running.h"
#include "emulation/device_fault.h"
#include "ops/cuda/device.cuh"
#include "tiny_model.h"

namespace {

using namespace running;

using LostDevice = While<cuda::lose_emulated_device>;

TEST("cuda: a device lost between steps fails what runs and what waits, and closes the engine") {
  const TinyModel model;
  Running running(model, on_cuda(Precision::f32));
  auto asked = requests(model.config.tokenizer_vocab, {5, 30, 18, 7, 9, 11, 13, 15, 17, 19}, 900);
  std::vector<std::uint32_t> handles;
  for (const Request& request : asked) handles.push_back(running.engine().submit(request));
  while (running.engine().stats().generated_tokens < 20) std::this_thread::yield();
  const LostDevice lost;
  for (const std::uint32_t handle : handles) {
    const std::string why = running.end_of(handle);
    CHECK(why.find("illegal memory access") != std::string::npos, why);
  }
  CHECK(running.end_of(kEngineHandle).find("illegal memory access") != std::string::npos);
  CHECK_THROWS("closed", running.engine().submit(asked.front()));
  CHECK_THROWS("closed", running.engine().check_integrity());
  CHECK(running.engine().stats().running == 0 && running.engine().stats().waiting == 0);
  running.engine().close();
}

TEST("cuda: a device lost while weights are loaded is an error of opening") {
  const TinyModel model;
  const LostDevice lost;
  CHECK_THROWS("illegal memory access", Running(model, on_cuda(Precision::f32)));
}

TEST("emulation: atomics do not race with each other, and do with what no barrier orders") {
  const auto count = [](bool with_barriers, unsigned* seen) {
    return check::thrown([&] {
      emulation::run({"atomics", 1, 64, 0, [&] {
                        SHARED(unsigned, counter, 1);
                        if (threadIdx.x == 0) counter[0] = 0;
                        if (with_barriers) __syncthreads();
                        cuda::shared_add(counter, 0, 2);
                        if (with_barriers) __syncthreads();
                        if (threadIdx.x == 0) *seen = counter[0];
                      }});
    });
  };
  unsigned seen = 0;
  CHECK(count(true, &seen).empty() && seen == 128);
  CHECK(count(false, &seen).find("race in shared memory") != std::string::npos);
}

}  // namespace
