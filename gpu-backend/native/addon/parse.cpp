#include "addon/parse.h"

#include <cmath>
#include <limits>

#include "base/error.h"

namespace qe {
namespace {

[[noreturn]] void refuse(const char* name, const char* want) {
  throw Error(ErrorCode::invalid_request, concat(name, " must be ", want));
}

double number(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber() || !std::isfinite(value.As<Napi::Number>().DoubleValue())) refuse(name, "a finite number");
  return value.As<Napi::Number>().DoubleValue();
}

/** A whole number in [0, 2^53). */
std::uint64_t whole(const Napi::Object& object, const char* name) {
  const double value = number(object, name);
  if (value < 0 || value != std::floor(value) || value >= 0x1p53) refuse(name, "a whole number, not negative");
  return static_cast<std::uint64_t>(value);
}

bool boolean(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsBoolean()) refuse(name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string text(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) refuse(name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object child(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsObject()) refuse(name, "an object");
  return value.As<Napi::Object>();
}

Napi::Array list(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsArray()) refuse(name, "an array");
  return value.As<Napi::Array>();
}

Napi::Uint32Array words(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
    refuse(name, "a Uint32Array");
  return value.As<Napi::Uint32Array>();
}

std::vector<TokenId> tokens(const Napi::Object& object, const char* name) {
  const Napi::Uint32Array array = words(object, name);
  return {array.Data(), array.Data() + array.ElementLength()};
}

WeightFormat weight_format(const std::string& name) {
  if (name == "stored") return WeightFormat::stored;
  if (name == "int8") return WeightFormat::int8;
  if (name == "gptq") return WeightFormat::gptq;
  if (name == "awq") return WeightFormat::awq;
  refuse("weights", "one of stored, int8, gptq and awq");
}

ModelConfig parse_config(const Napi::Object& object) {
  ModelConfig config;
  config.hidden = whole(object, "hidden");
  config.layers = whole(object, "layers");
  config.heads = whole(object, "heads");
  config.kv_heads = whole(object, "kvHeads");
  config.head_dim = whole(object, "headDim");
  config.intermediate = whole(object, "intermediate");
  config.vocab = whole(object, "vocab");
  config.tokenizer_vocab = whole(object, "tokenizerVocab");
  config.context = whole(object, "context");
  config.rms_norm_eps = static_cast<float>(number(object, "rmsNormEps"));
  config.rope_theta = static_cast<float>(number(object, "ropeTheta"));
  config.tied = boolean(object, "tied");
  config.yarn.factor = static_cast<float>(number(object, "yarnFactor"));
  config.yarn.original = whole(object, "yarnOriginal");
  config.yarn.beta_fast = static_cast<float>(number(object, "yarnBetaFast"));
  config.yarn.beta_slow = static_cast<float>(number(object, "yarnBetaSlow"));
  config.yarn.attention_factor = static_cast<float>(number(object, "yarnAttentionFactor"));
  config.moe.experts = whole(object, "experts");
  config.moe.top_k = whole(object, "topK");
  config.moe.inner = whole(object, "expertInner");
  config.moe.shared = whole(object, "sharedInner");
  config.moe.renormalise = boolean(object, "renormalise");
  config.weights = weight_format(text(object, "weights"));
  config.quant_group = whole(object, "quantGroup");
  return config;
}

TableEntry parse_entry(const Napi::Object& object) {
  TableEntry entry;
  entry.name = text(object, "name");
  entry.dtype = text(object, "dtype");
  entry.file = whole(object, "file");
  entry.begin = whole(object, "begin");
  entry.end = whole(object, "end");
  const Napi::Array shape = list(object, "shape");
  for (std::uint32_t i = 0; i < shape.Length(); ++i) {
    const Napi::Value dim = shape.Get(i);
    const double size = dim.IsNumber() ? dim.As<Napi::Number>().DoubleValue() : -1;
    if (!(size >= 0 && size < 0x1p53 && size == std::floor(size))) refuse("shape", "a list of whole numbers");
    entry.shape.push_back(static_cast<std::uint64_t>(size));
  }
  return entry;
}

}  // namespace

OpenRequest parse_open(const Napi::Object& object) {
  OpenRequest request;
  const Napi::Array files = list(object, "files"), table = list(object, "tensors");
  for (std::uint32_t i = 0; i < files.Length(); ++i) request.files.push_back(files.Get(i).ToString().Utf8Value());
  for (std::uint32_t i = 0; i < table.Length(); ++i)
    request.table.push_back(parse_entry(table.Get(i).As<Napi::Object>()));
  request.config = parse_config(child(object, "config"));
  request.threads = static_cast<unsigned>(std::min<std::uint64_t>(whole(object, "threads"), 1024));
  request.kernels = text(object, "kernels");
  request.cuda = text(object, "device") == "cuda";
  request.deterministic = boolean(object, "deterministic");
  request.options.kv_bytes = whole(object, "kvBytes");
  request.options.host_bytes = whole(object, "hostBytes");
  request.options.queue_max = whole(object, "maxQueue");
  request.options.limits.batch = std::max<std::uint64_t>(whole(object, "maxBatch"), 1);
  request.options.limits.chunk = std::max<std::uint64_t>(whole(object, "prefillChunk"), 1);
  request.options.limits.chunk_beside = std::max<std::uint64_t>(whole(object, "prefillChunkBeside"), 1);
  request.options.limits.draft_rows = std::min<std::uint64_t>(whole(object, "draftRows"), 64);
  request.options.identity = text(object, "revision");
  request.options.run_ahead = boolean(object, "runAhead");
  request.options.check_when_idle = boolean(object, "checkWhenIdle");
  return request;
}

TokenMask parse_mask(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
    refuse("mask", "a Uint32Array");
  const auto words = value.As<Napi::Uint32Array>();
  return {words.Data(), words.Data() + words.ElementLength()};
}

Request parse_request(const Napi::Object& object) {
  Request request;
  request.tokens = tokens(object, "tokenIds");
  request.salt = text(object, "salt");
  request.shared_prefix = whole(object, "sharedPrefixTokens");
  request.priority = static_cast<int>(std::clamp(number(object, "priority"), -1e6, 1e6));
  request.deadline_ms = std::clamp(number(object, "deadlineMs"), 0.0, 1e12);
  request.pin_ms = std::clamp(number(object, "pinMs"), 0.0, 1e12);

  SamplingParams& sampling = request.sampling;
  sampling.temperature = number(object, "temperature");
  sampling.top_p = number(object, "topP");
  sampling.top_k = whole(object, "topK");
  sampling.min_p = number(object, "minP");
  sampling.repetition_penalty = number(object, "repetitionPenalty");
  sampling.presence_penalty = number(object, "presencePenalty");
  sampling.frequency_penalty = number(object, "frequencyPenalty");
  // Any whole number is a seed; negative ones wrap.
  sampling.seed =
      static_cast<std::uint64_t>(static_cast<std::int64_t>(std::clamp(number(object, "seed"), -0x1p53, 0x1p53)));
  sampling.max_tokens = whole(object, "maxTokens");
  sampling.min_tokens = whole(object, "minTokens");
  sampling.stop = tokens(object, "stop");
  sampling.logprobs = static_cast<int>(std::clamp(number(object, "logprobs"), -1.0, 1000.0));
  const std::vector<TokenId> biased = tokens(object, "biasedTokens");
  const Napi::Array biases = list(object, "biases");
  for (std::size_t i = 0; i < biased.size(); ++i)
    sampling.logit_bias.emplace_back(biased[i], biases.Get(static_cast<std::uint32_t>(i)).ToNumber().FloatValue());

  if (boolean(object, "constrained")) request.mask = parse_mask(object.Get("mask"));

  if (sampling.temperature < 0) refuse("temperature", "0 or more");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) refuse("top_p", "above 0 and at most 1");
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) refuse("min_p", "between 0 and 1");
  if (!(sampling.repetition_penalty > 0)) refuse("repetition_penalty", "above 0");
  for (const auto& [token, bias] : sampling.logit_bias)
    if (!std::isfinite(bias)) refuse("logit_bias", "finite");
  return request;
}

}  // namespace qe
