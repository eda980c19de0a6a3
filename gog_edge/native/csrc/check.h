// Checks of an operator's arguments: one line that names what is wrong.
#pragma once

#include <stdexcept>
#include <string>

namespace gog {

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

}  // namespace gog
