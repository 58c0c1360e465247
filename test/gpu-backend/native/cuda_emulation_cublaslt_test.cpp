// Products by cuBLASLt, against a library of our own that computes them on the host.

#include <dlfcn.h>

#include "cuda_device.h"
#include "cuda_fixture.h"
#include "cuda_running.h"
#include "fake_cublaslt.h"

namespace {

using namespace running;
using device::Array;
using device::Floats;

FakeCublasLt& fake() {
  static auto* const noted = reinterpret_cast<FakeCublasLt* (*)()>(
      dlsym(dlopen(QE_FAKE_CUBLASLT, RTLD_NOW | RTLD_LOCAL), "fake_cublaslt"))();
  return *noted;
}

TEST("cuda: products by cuBLASLt against the reference: added, strided, one heuristic a shape, all given back") {
  fake() = {};
  {
    const auto library = cuda::CublasLt::open(QE_FAKE_CUBLASLT);
    CHECK(library != nullptr);
    for (const bool add : {false, true})
      for (const std::size_t rows : {64, 65, 64}) {
        const std::size_t in = 24, out = 10, stride = 13;
        const Floats x = device::rounded(device::noise(rows * in, 1)), w = device::rounded(device::noise(out * in, 2));
        const Floats before = device::noise(rows * stride, 3);
        const Array<std::uint16_t> on_x(device::bits_of(x)), on_w(device::bits_of(w));
        const Array<float> y(before);
        const auto* as_x = reinterpret_cast<const cuda::Bf16*>(static_cast<std::uint16_t*>(on_x));
        const auto* as_w = reinterpret_cast<const cuda::Bf16*>(static_cast<std::uint16_t*>(on_w));
        CHECK(library->matmul(device::stream(), as_x, rows, in, as_w, out, y, stride, add));
        std::vector<double> want(before.begin(), before.end());
        for (std::size_t row = 0; row < rows; ++row)
          for (std::size_t o = 0; o < out; ++o) {
            double sum = add ? double{before[row * stride + o]} : 0;
            for (std::size_t i = 0; i < in; ++i) sum += double{x[row * in + i]} * double{w[o * in + i]};
            want[row * stride + o] = sum;
          }
        device::check_near(y.read(), want, 1e-6, concat("rows ", rows));
      }
    CHECK(fake().heuristics == 2 && fake().products == 6, concat(fake().heuristics, " heuristics, ", fake().products, " products"));
  }
  CHECK(fake().open == 0, concat(fake().open, " objects left"));
}

/** Of one prefill of 70 tokens in served precision. */
std::vector<float> logits_with(const FolderModel& model, const std::string& library, std::string* level) {
  auto limited = limits();
  CudaOptions options{Precision::bf16, false, true, limited.chunk, library};
  options.rows_max = 128;
  auto ops = std::make_unique<CudaOps>(options);
  *level = ops->level();
  EngineOptions engine;
  engine.kv_bytes = 4 << 20, engine.limits.chunk = 128, engine.limits.chunk_beside = 8, engine.limits.batch = 8;
  Engine one(std::move(ops), model.config, model.open(), engine, [](std::vector<Event>&&) {});
  const Tokens prompt = requests(model.config.vocab, {70}, 1).front().tokens;
  return one.logits(prompt, 128);
}

TEST("cuda engine: a prefill computes alike by cuBLASLt, without it, and where it knows no way") {
  const FolderModel model(QE_ROOT "/test/golden/engine/dense-gqa-tied");
  std::string with, without, refused;
  fake() = {};
  const auto by_library = logits_with(model, QE_FAKE_CUBLASLT, &with);
  CHECK(fake().products >= 7 * model.config.layers, concat(fake().products, " products"));
  const auto by_us = logits_with(model, "libno-such-library.so", &without);
  fake() = {.heuristics = 0, .products = 0, .open = 0, .refuses = true};
  const auto as_refused = logits_with(model, QE_FAKE_CUBLASLT, &refused);
  CHECK(fake().products == 0);
  CHECK(with == "sm_80 bf16 cuBLASLt" && without == "sm_80 bf16 no libno-such-library.so", with + ", " + without);
  CHECK(device::same_bits(as_refused, by_us));
  device::check_near(by_library, {by_us.begin(), by_us.end()}, 2e-2, "logits");
}

}  // namespace
