#include "shared_address.h"

#include "memory.h"
#include "report.h"
#include "scheduler.h"

namespace interpreter {

uint32_t shared_address(const void* pointer) {
    const Block& block = *current->warp->block;
    const size_t in_arena = shared_memory.offset(pointer) - block.arena * kArenaBytes;
    if (in_arena >= kArenaBytes)
        fail(RIGEL_CALLER, text("shared_address of %p, which is not in this block's shared memory", pointer));
    return static_cast<uint32_t>(in_arena);
}

Block& block_of_address(uint32_t address, Site site) {
    Block& own = *current->warp->block;
    const uint32_t rank_and_one = address >> kRankShift;
    if (without_rank(address) >= kArenaBytes)
        fail(site, text("shared address %#x is outside of the shared window", address));
    if (rank_and_one == 0) return own;
    const auto& blocks = own.cluster->blocks;
    if (rank_and_one > blocks.size())
        fail(site, text("the address names block %u of a cluster of %zu", rank_and_one - 1, blocks.size()));
    Block* block = blocks[rank_and_one - 1];
    if (!block)
        fail(site, text("block %u of the cluster has ended: its shared memory is gone", rank_and_one - 1),
             {"blocks that others still reach wait for those at the cluster's barrier (cluster_arrive, cluster_wait)"});
    return *block;
}

uint8_t* shared_pointer(uint32_t address, Site site) {
    return shared_memory.base + block_of_address(address, site).arena * kArenaBytes + without_rank(address);
}

}  // namespace interpreter
