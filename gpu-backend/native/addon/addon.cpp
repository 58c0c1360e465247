// The N-API boundary: openEngine(options, wake) -> Promise<NativeEngine>. native-addon.ts types everything here.

#include <napi.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "addon/mailbox.h"
#include "addon/parse.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "ops/cpu/bandwidth.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cuda/open.h"

namespace qe {
namespace {

const char* name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::checkpoint:
      return "CheckpointError";
    case ErrorCode::invalid_request:
      return "InvalidRequestError";
    case ErrorCode::queue_full:
      return "QueueFullError";
    case ErrorCode::closed:
      return "EngineClosedError";
    case ErrorCode::integrity:
      return "IntegrityError";
    case ErrorCode::internal:
    case ErrorCode::device:
      return "EngineError";
  }
  return "EngineError";
}

Napi::Error to_js(Napi::Env env, const std::exception& error) {
  const auto* ours = dynamic_cast<const Error*>(&error);
  Napi::Error js = Napi::Error::New(env, error.what());
  js.Set("name", Napi::String::New(env, name_of(ours != nullptr ? ours->code() : ErrorCode::internal)));
  return js;
}

/** Runs a body, turning C++ exceptions into JavaScript ones; JavaScript's own pass through. */
template <class Body>
auto guarded(const Napi::CallbackInfo& info, Body&& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& error) {
    throw to_js(info.Env(), error);
  }
}

/**
 * What outlives a garbage-collected wrapper: the engine and its way back to JavaScript. The thread-safe function is
 * referenced while a request is under way, so that Node stays alive for its answer and exits when all are done.
 */
struct Runtime {
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  Napi::ThreadSafeFunction wake;
  std::unique_ptr<Engine> engine;
  bool closing = false, released = false;

  ~Runtime() { shut(); }

  /** Waits for the engine's thread, on any thread. */
  void join() {
    const std::scoped_lock lock(ending_);
    if (engine) engine->close();
  }

  /** Joins and gives back weights and KV. The environment's end may call it while a join() is under way. */
  void shut() {
    const std::scoped_lock lock(ending_);
    engine.reset();
    if (!released) wake.Release();
    released = true;
  }

 private:
  std::mutex ending_;
};

/** Waits for the engine's thread. */
class Joining : public Napi::AsyncWorker {
 public:
  Joining(Napi::Env env, std::shared_ptr<Runtime> runtime)
      : Napi::AsyncWorker(env), done_(Napi::Promise::Deferred::New(env)), runtime_(std::move(runtime)) {}
  Napi::Promise promise() { return done_.Promise(); }
  void Execute() override { runtime_->join(); }
  void OnOK() override {
    runtime_->shut();
    done_.Resolve(Env().Undefined());
  }

 private:
  Napi::Promise::Deferred done_;
  std::shared_ptr<Runtime> runtime_;
};

class NativeEngine : public Napi::ObjectWrap<NativeEngine> {
 public:
  /** One an environment: threads that load the addon have their own. */
  static Napi::Object create(Napi::Env env, const std::shared_ptr<Runtime>& runtime) {
    auto held = runtime;
    return env.GetInstanceData<Napi::FunctionReference>()->New(
        {Napi::External<std::shared_ptr<Runtime>>::New(env, &held)});
  }

  static void define(Napi::Env env) {
    Napi::Function type =
        DefineClass(env, "NativeEngine",
                    {InstanceMethod<&NativeEngine::submit>("submit"), InstanceMethod<&NativeEngine::cancel>("cancel"),
                     InstanceMethod<&NativeEngine::mask>("mask"), InstanceMethod<&NativeEngine::drain>("drain"),
                     InstanceMethod<&NativeEngine::keep_alive>("keepAlive"),
                     InstanceMethod<&NativeEngine::stats>("stats"), InstanceMethod<&NativeEngine::tenants>("tenants"),
                     InstanceMethod<&NativeEngine::info>("info"), InstanceMethod<&NativeEngine::logits>("logits"),
                     InstanceMethod<&NativeEngine::check_integrity>("checkIntegrity"),
                     InstanceMethod<&NativeEngine::close>("close")});
    env.SetInstanceData(new Napi::FunctionReference(Napi::Persistent(type)));  // deleted with the environment
  }

  explicit NativeEngine(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeEngine>(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use openEngine()");
    runtime_ = *info[0].As<Napi::External<std::shared_ptr<Runtime>>>().Data();
    // Runs before the thread-safe function dies with the environment, as hooks run last in, first out.
    info.Env().AddCleanupHook([weak = std::weak_ptr(runtime_)] {
      if (const auto runtime = weak.lock()) runtime->shut();
    });
  }

 private:
  Napi::Value submit(const Napi::CallbackInfo& info) {
    return guarded(info, [&] {
      if (!info[0].IsObject()) throw Error(ErrorCode::invalid_request, "a request is wanted");
      return Napi::Number::New(info.Env(), engine().submit(parse_request(info[0].As<Napi::Object>())));
    });
  }
  Napi::Value cancel(const Napi::CallbackInfo& info) {
    return guarded(info, [&] {
      engine().cancel(info[0].ToNumber().Uint32Value());
      return info.Env().Undefined();
    });
  }
  Napi::Value mask(const Napi::CallbackInfo& info) {
    return guarded(info, [&] {
      engine().mask(info[0].ToNumber().Uint32Value(), parse_mask(info[1]));
      return info.Env().Undefined();
    });
  }
  Napi::Value keep_alive(const Napi::CallbackInfo& info) {
    if (runtime_->released) return info.Env().Undefined();
    if (info[0].ToBoolean()) {
      runtime_->wake.Ref(info.Env());
    } else {
      runtime_->wake.Unref(info.Env());
    }
    return info.Env().Undefined();
  }
  Napi::Value drain(const Napi::CallbackInfo& info) {
    const Mailbox::Letters letters = runtime_->mailbox->drain();
    Napi::Float64Array records = Napi::Float64Array::New(info.Env(), letters.records.size());
    std::copy(letters.records.begin(), letters.records.end(), records.Data());
    Napi::Array messages = Napi::Array::New(info.Env(), letters.messages.size());
    for (std::size_t i = 0; i < letters.messages.size(); ++i)
      messages.Set(static_cast<std::uint32_t>(i), letters.messages[i]);
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("records", records);
    result.Set("messages", messages);
    return result;
  }
  Napi::Value stats(const Napi::CallbackInfo& info) {
    const EngineStats stats = guarded(info, [&] { return engine().stats(); });
    Napi::Object result = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, auto value) { result.Set(name, static_cast<double>(value)); };
    set("blocksTotal", stats.blocks_total), set("blocksFree", stats.blocks_free);
    set("blocksCached", stats.blocks_cached), set("blocksUsed", stats.blocks_used);
    set("blocksPinned", stats.blocks_pinned);
    set("running", stats.running), set("waiting", stats.waiting);
    set("prefixQueries", stats.prefix_queries), set("prefixHits", stats.prefix_hits);
    set("evictions", stats.evictions), set("preemptions", stats.preemptions);
    set("hostBlocks", stats.host_blocks), set("hostLoads", stats.host_loads);
    set("promptTokens", stats.prompt_tokens), set("generatedTokens", stats.generated_tokens);
    set("requests", stats.requests), set("steps", stats.steps), set("stepsAhead", stats.steps_ahead);
    set("draftedTokens", stats.drafted_tokens), set("acceptedTokens", stats.accepted_tokens);
    return result;
  }
  Napi::Value tenants(const Napi::CallbackInfo& info) {
    const auto counters = guarded(info, [&] { return engine().tenants(); });
    Napi::Array result = Napi::Array::New(info.Env());
    for (const TenantCounters& each : counters) {
      Napi::Object row = Napi::Object::New(info.Env());
      row.Set("salt", each.salt);
      row.Set("queries", static_cast<double>(each.queries));
      row.Set("hits", static_cast<double>(each.hits));
      row.Set("evictions", static_cast<double>(each.evictions));
      result.Set(result.Length(), row);
    }
    return result;
  }
  Napi::Value info(const Napi::CallbackInfo& info) {
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("threads", engine().ops().threads());
    result.Set("kernelLevel", engine().ops().level());
    result.Set("blockSize", static_cast<double>(kBlockSize));
    result.Set("blocksTotal", static_cast<double>(engine().blocks_total()));
    return result;
  }
  Napi::Value logits(const Napi::CallbackInfo& info) {
    return guarded(info, [&] {
      const auto ids = info[0].As<Napi::Uint32Array>();
      const std::vector<float> all =
          engine().logits({ids.Data(), ids.ElementLength()}, info[1].ToNumber().Uint32Value());
      Napi::Float32Array result = Napi::Float32Array::New(info.Env(), all.size());
      std::copy(all.begin(), all.end(), result.Data());
      return result;
    });
  }
  Napi::Value check_integrity(const Napi::CallbackInfo& info) {
    return guarded(info, [&] {
      engine().check_integrity();
      return info.Env().Undefined();
    });
  }
  /** Joins on another thread, since a step may take a while. To be called once; engine.ts sees to that. */
  Napi::Value close(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      if (runtime_->closing || !runtime_->engine) throw Error(ErrorCode::closed, "the engine is closed");
      runtime_->closing = true;
      auto* worker = new Joining(info.Env(), runtime_);  // AsyncWorker deletes itself
      worker->Queue();
      return worker->promise();
    });
  }

  Engine& engine() {
    if (!runtime_->engine) throw Error(ErrorCode::closed, "the engine is closed");
    return *runtime_->engine;
  }

  std::shared_ptr<Runtime> runtime_;
};

/** Maps and checks the weights away from JavaScript's thread: reading gigabytes takes its time. */
class Opening : public Napi::AsyncWorker {
 public:
  Opening(Napi::Env env, OpenRequest request, const Napi::Function& wake)
      : Napi::AsyncWorker(env), done_(Napi::Promise::Deferred::New(env)), request_(std::move(request)) {
    runtime_->wake = Napi::ThreadSafeFunction::New(env, wake, "qwen2-edge engine", 0, 1);
    runtime_->wake.Unref(env);
  }
  Napi::Promise promise() { return done_.Promise(); }

  void Execute() override {
    try {
      auto checkpoint = std::make_unique<Checkpoint>(request_.files, request_.table);
      std::unique_ptr<Ops> ops = open_ops(checkpoint->bytes());
      const auto sink = [mailbox = runtime_->mailbox, wake = runtime_->wake](std::vector<Event>&& events) {
        if (mailbox->put(events)) wake.NonBlockingCall([](Napi::Env, Napi::Function js) { js.Call({}); });
      };
      runtime_->engine = std::make_unique<Engine>(std::move(ops), request_.config, std::move(checkpoint),
                                                  std::move(request_.options), sink);
    } catch (const Error& error) {
      failure_ = error;
    } catch (const std::exception& error) {
      failure_ = Error(ErrorCode::internal, error.what());
    }
  }
  void OnOK() override {
    if (failure_) {
      runtime_->shut();
      return done_.Reject(to_js(Env(), *failure_).Value());
    }
    done_.Resolve(NativeEngine::create(Env(), runtime_));
  }

 private:
  std::unique_ptr<Ops> open_ops(std::size_t weight_bytes) {
    if (!request_.cuda) return std::make_unique<cpu::CpuOps>(request_.threads, request_.kernels);
    const SchedulerLimits& limits = request_.options.limits;
    const std::size_t logit_bytes = std::max(limits.batch, limits.draft_rows) * request_.config.vocab * sizeof(float);
    cuda::Opened opened = cuda::open({request_.deterministic, limits.rows_max(), weight_bytes, request_.options.kv_bytes, logit_bytes});
    request_.options.kv_bytes = opened.kv_bytes;
    return std::move(opened.ops);
  }

  Napi::Promise::Deferred done_;
  OpenRequest request_;
  std::shared_ptr<Runtime> runtime_ = std::make_shared<Runtime>();
  std::optional<Error> failure_;
};

Napi::Value open_engine(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    if (!info[0].IsObject() || !info[1].IsFunction()) throw Error(ErrorCode::invalid_request, "open(options, wake)");
    auto* worker = new Opening(info.Env(), parse_open(info[0].As<Napi::Object>()), info[1].As<Napi::Function>());
    worker->Queue();
    return worker->promise();
  });
}

/** Why CUDA cannot be used, or null. */
Napi::Value cuda_missing(const Napi::CallbackInfo& info) {
  const auto why = cuda::missing();
  return why ? Napi::String::New(info.Env(), *why).As<Napi::Value>() : info.Env().Null();
}

Napi::Value read_bandwidth(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const unsigned threads = info[0].ToNumber().Uint32Value();
    const auto bytes = static_cast<std::size_t>(info[1].ToNumber().DoubleValue());
    return Napi::Number::New(info.Env(), cpu::read_bandwidth(threads, bytes));
  });
}

Napi::Value kernel_levels(const Napi::CallbackInfo& info) {
  Napi::Array names = Napi::Array::New(info.Env());
  for (const cpu::Kernels* kernels : cpu::available_kernels()) names.Set(names.Length(), std::string(kernels->level));
  return names;
}

Napi::Object start(Napi::Env env, Napi::Object exports) {
  NativeEngine::define(env);
  exports.Set("open", Napi::Function::New(env, open_engine));
  exports.Set("kernelLevels", Napi::Function::New(env, kernel_levels));
  exports.Set("cudaMissing", Napi::Function::New(env, cuda_missing));
  exports.Set("readBandwidth", Napi::Function::New(env, read_bandwidth));
  return exports;
}

}  // namespace
}  // namespace qe

static Napi::Object initialise(Napi::Env env, Napi::Object exports) { return qe::start(env, exports); }
NODE_API_MODULE(qwen2_edge, initialise)
