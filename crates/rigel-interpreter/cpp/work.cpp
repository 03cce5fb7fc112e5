#include "work.h"

#include <algorithm>
#include <cstdio>

#include "grid.h"

namespace interpreter {

History history;

uint64_t History::begin_work(uint32_t stream, uint64_t sequence, std::string name, dim3 grid_size, dim3 block_size) {
    works_.push_back({works_.size(), stream, sequence, next_, std::move(name), grid_size, block_size});
    return works_.back().identity;
}

Serial History::begin_block(uint64_t work, uint64_t index, uint32_t agents) {
    const Serial first = next_;
    next_ += agents;
    blocks_.push_back({first, work, index, agents});
    return first;
}

const BlockOfWork& History::block_of(Serial serial) const {
    auto after = std::upper_bound(blocks_.begin(), blocks_.end(), serial,
                                  [](Serial wanted, const BlockOfWork& block) { return wanted < block.first; });
    return *(after - 1);  // serials begin with the first block, so one is at or below
}

namespace {
std::string coordinates(uint64_t index, dim3 size) {
    char text[64];
    std::snprintf(text, sizeof text, "(%u,%u,%u)", static_cast<unsigned>(index % size.x),
                  static_cast<unsigned>(index / size.x % size.y), static_cast<unsigned>(index / size.x / size.y));
    return text;
}
}  // namespace

std::string History::describe_agent(Serial serial) const {
    const BlockOfWork& block = block_of(serial);
    const Work& of = work(block.work);
    if (block.agents == 1) return of.name + " (work " + std::to_string(of.identity) + ")";
    const Agents agents{of.block_size.x * of.block_size.y * of.block_size.z};
    const Serial agent = serial - block.first;
    std::string who;
    if (agent >= agents.matrix(0))
        who = "MMA instructions of warpgroup " + std::to_string(agent - agents.matrix(0));
    else if (agent >= agents.bulk_copies(0, 0))
        who = "bulk copies of warp " + std::to_string(agents.warp_of_bulk_copies(agent));
    else
        who = std::string(agent % 2 ? "the asynchronous copy of " : "") + "thread " +
              coordinates(agent / 2, of.block_size);
    return who + " of block " + coordinates(block.index, of.grid_size) + " of " + of.name + " (work " +
           std::to_string(of.identity) + ")";
}

}  // namespace interpreter
