#pragma once

// A test harness in one header: TEST(name) { CHECK(...); } in any file, qe_tests [part of a name]... runs them.

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, std::function<void()> body) { tests().push_back({name, std::move(body)}); }
};

/** Fails the test with the message; `more` says what was seen. */
inline void that(bool holds, const char* what, const char* file, int line, const std::string& more = "") {
  if (holds) return;
  std::ostringstream text;
  text << file << ":" << line << ": " << what << (more.empty() ? "" : ": ") << more;
  throw std::runtime_error(text.str());
}

/** The message of what the body throws, or "" when it does not. */
template <class Body>
std::string thrown(Body&& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace check

#define CHECK_JOIN2(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN2(a, b)
#define TEST(name)                                                                                 \
  static void CHECK_JOIN(test_, __LINE__)();                                                       \
  static const check::Register CHECK_JOIN(register_, __LINE__)(name, CHECK_JOIN(test_, __LINE__)); \
  static void CHECK_JOIN(test_, __LINE__)()
#define CHECK(condition, ...) check::that(static_cast<bool>(condition), #condition, __FILE__, __LINE__, ##__VA_ARGS__)
#define CHECK_THROWS(part, body)                                                                        \
  do {                                                                                                  \
    const std::string message = check::thrown([&] { static_cast<void>(body); });                        \
    check::that(message.find(part) != std::string::npos, "throws " #part, __FILE__, __LINE__, message); \
  } while (false)
