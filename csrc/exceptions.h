// Exceptions of the native module. bindings.cpp translates them to fastdc.InputError and fastdc.BackendError.
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

// Checks user input. The message says what was expected and what was found.
#define FASTDC_CHECK(condition, ...)                                             \
  do {                                                                           \
    if (!(condition)) throw ::fastdc::InputError(::fastdc::concat(__VA_ARGS__)); \
  } while (false)
