// The bytes of a launch's arguments, each at a multiple of its alignment.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace interpreter {

// Aligned to 128 bytes, as the most demanding argument is, a tensor map.
class ArgumentBytes {
  public:
    ArgumentBytes() = default;
    explicit ArgumentBytes(size_t bytes) : lines_(new Line[(bytes + sizeof(Line) - 1) / sizeof(Line)]), bytes_(bytes) {}
    ArgumentBytes(const ArgumentBytes& other) : ArgumentBytes(other.bytes_) {
        std::memcpy(data(), other.data(), bytes_);
    }
    ArgumentBytes& operator=(ArgumentBytes other) noexcept {
        std::swap(lines_, other.lines_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    uint8_t* data() { return reinterpret_cast<uint8_t*>(lines_.get()); }
    const uint8_t* data() const { return reinterpret_cast<const uint8_t*>(lines_.get()); }
    size_t size() const { return bytes_; }

  private:
    struct alignas(128) Line {
        uint8_t bytes[128];
    };
    std::unique_ptr<Line[]> lines_;
    size_t bytes_ = 0;
};

}  // namespace interpreter
