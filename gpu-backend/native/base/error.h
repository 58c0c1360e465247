#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace qe {

/** What went wrong, in the words the TypeScript side turns into error classes. */
enum class ErrorCode { checkpoint, invalid_request, queue_full, closed, integrity, internal, device };

/** The one exception of the runtime: a code for programs and one clear line for people. */
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/** Joins its arguments into one string, as `<<` prints them. */
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace qe
