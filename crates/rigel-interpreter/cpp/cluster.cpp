// The barrier of a cluster, and the shared memory of its other blocks.
#include <cstring>

#include "access.h"
#include "report.h"
#include "scheduler.h"
#include "shared_address.h"
#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

uint32_t cluster_rank() { return current->warp->block->rank; }

uint32_t cluster_blocks() { return static_cast<uint32_t>(current->warp->block->cluster->blocks.size()); }

uint32_t cluster_address(uint32_t shared_address, uint32_t rank) {
    const size_t blocks = current->warp->block->cluster->blocks.size();
    if (rank >= blocks) fail(RIGEL_CALLER, text("cluster_address: block %u of a cluster of %zu", rank, blocks));
    return without_rank(shared_address) | (rank + 1) << kRankShift;
}

uint32_t load_cluster(uint32_t address) {
    const Site site = RIGEL_CALLER;
    const uint8_t* const place = shared_pointer(address, site);
    check_alignment(place, 4, "read", site);
    check_shared(place, 4, {current, Agent::Thread, Does::Read, site});
    uint32_t value;
    std::memcpy(&value, place, sizeof value);
    return value;
}

namespace {
void open_when_all_are_here(Cluster& cluster) {
    if (cluster.arrived == 0 || cluster.arrived < cluster.live_threads) return;
    cluster.arrived = 0;
    cluster.phase++;
    cluster.ended = std::move(cluster.gathering);
    cluster.gathering = Ref<const Message>();
    for (Thread* thread : cluster.waiting) scheduler.wake(*thread);
    cluster.waiting.clear();
}
}  // namespace

void cluster_arrive() {
    const Site site = RIGEL_CALLER;
    Thread& thread = *current;
    Cluster& cluster = *thread.warp->block->cluster;
    if (thread.arrived_at_cluster) fail(site, "cluster_arrive for the second time without cluster_wait between");
    thread.arrived_at_cluster = true;
    thread.cluster_phase = cluster.phase;
    cluster.gathering = join(cluster.gathering, publish(thread));
    cluster.arrived++;
    open_when_all_are_here(cluster);
}

void cluster_wait() {
    const Site site = RIGEL_CALLER;
    Thread& thread = *current;
    Cluster& cluster = *thread.warp->block->cluster;
    if (!thread.arrived_at_cluster) fail(site, "cluster_wait without cluster_arrive before");
    while (cluster.phase == thread.cluster_phase) {
        cluster.waiting.push_back(&thread);
        scheduler.block("the cluster's barrier", site);
    }
    thread.arrived_at_cluster = false;
    acquire(thread, *cluster.ended);
}

void leave_cluster(Thread& thread) {
    Cluster& cluster = *thread.warp->block->cluster;
    cluster.live_threads--;
    if (thread.arrived_at_cluster && cluster.phase == thread.cluster_phase) cluster.arrived--;  // it counts no longer
    open_when_all_are_here(cluster);
}

}  // namespace interpreter
