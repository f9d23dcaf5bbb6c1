// Exceptions of the native module. bindings.cpp turns them into fastdc.InputError and fastdc.BackendError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastdc {

struct InputError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct BackendError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace fastdc

// User input: says what was expected and what came.
#define FASTDC_CHECK(condition, ...)                                             \
  do {                                                                           \
    if (!(condition)) throw ::fastdc::InputError(::fastdc::concat(__VA_ARGS__)); \
  } while (false)
