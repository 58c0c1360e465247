#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "engine/engine.h"

namespace qe {

/** Everything openEngine() hands over; the tensor table is untrusted, the rest comes from our own TypeScript. */
struct OpenRequest {
  std::vector<std::string> files;
  std::vector<TableEntry> table;
  ModelConfig config;
  EngineOptions options;
  unsigned threads = 0;
  std::string kernels;
  bool cuda = false, deterministic = false;
};

/** Both throw Error(invalid_request) naming the field that has the wrong type or lies outside its range. */
OpenRequest parse_open(const Napi::Object& object);
Request parse_request(const Napi::Object& object);

/** Throws Error(invalid_request) unless it is a Uint32Array. */
TokenMask parse_mask(const Napi::Value& value);

}  // namespace qe
