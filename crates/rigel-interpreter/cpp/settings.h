// What a test may set: the device that is played, the seed of all shuffling, when asynchronous copies finish.
#pragma once
#include <cstdint>

namespace interpreter {

enum class AsyncPolicy : uint32_t { Late, Eager, Random };

struct Settings {
    uint64_t seed = 0;  // 0: blocks, warps and lanes run in their natural order
    AsyncPolicy async = AsyncPolicy::Late;
};
extern Settings settings;

// xorshift64*: shuffling needs speed and repeatability, not quality.
class Random {
  public:
    void reseed(uint64_t seed) { state_ = seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull; }
    uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1dull >> 16;
    }
    uint64_t below(uint64_t limit) { return next() % limit; }

  private:
    uint64_t state_ = 1;
};
extern Random shuffle_source;

}  // namespace interpreter
