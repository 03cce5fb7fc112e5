#include "memory.h"

#include <iterator>

#include "address_space.h"
#include "report.h"

namespace interpreter {

Region device_memory, shared_memory;
Allocations allocations;

void Region::reserve(size_t size) {
    bytes = size;
    base = static_cast<uint8_t*>(reserve_addresses(size));
    written = static_cast<uint8_t*>(reserve_addresses(size));
    cells.reserve(size);
}

void prepare_memory() {
    if (device_memory.base) return;
    device_memory.reserve(kDeviceBytes);
    shared_memory.reserve(kArenas * kArenaBytes);
}

void* Allocations::allocate(size_t bytes) {
    const size_t taken = (bytes + 255) / 256 * 256 + 256;
    for (int round = 0; round < 2; round++, next_ = 256) {
        auto after = by_start_.lower_bound(next_);
        if (after != by_start_.begin()) {
            auto before = std::prev(after);
            const size_t end = (before->first + before->second + 255) / 256 * 256 + 256;
            if (next_ < end) next_ = end;
        }
        while (after != by_start_.end() && after->first < next_ + taken) {  // skip what is in the way
            next_ = (after->first + after->second + 255) / 256 * 256 + 256;
            ++after;
        }
        if (next_ + taken > kDeviceBytes) continue;
        const size_t start = next_;
        by_start_[start] = bytes;
        next_ = start + taken;
        return device_memory.base + start;
    }
    return nullptr;
}

bool Allocations::free(void* base) {
    auto at = by_start_.find(device_memory.offset(base));
    if (at == by_start_.end()) return false;
    const size_t start = at->first, bytes = (at->second + 255) / 256 * 256;
    clear(device_memory.written + start, bytes);
    device_memory.cells.forget(start, bytes);
    clear(device_memory.base + start, bytes);
    by_start_.erase(at);
    last_start_ = last_end_ = 0;
    return true;
}

bool Allocations::inside(size_t offset, size_t bytes) {
    if (offset >= last_start_ && offset + bytes <= last_end_) return true;
    auto after = by_start_.upper_bound(offset);
    if (after == by_start_.begin()) return false;
    auto [start, size] = *std::prev(after);
    if (offset + bytes > start + size) return false;
    last_start_ = start;
    last_end_ = start + size;
    return true;
}

size_t Allocations::size_of(const void* base) const {
    auto at = by_start_.find(device_memory.offset(base));
    return at == by_start_.end() ? 0 : at->second;
}

std::string Allocations::nearest(size_t offset) const {
    auto after = by_start_.upper_bound(offset);
    if (after == by_start_.begin()) return "no allocation lies below that address";
    auto [start, size] = *std::prev(after);
    return text("the nearest allocation below has %zu bytes; the access begins at its byte %zu", size, offset - start);
}

}  // namespace interpreter
