// cp.async. The checks are made when a copy is issued, in the name of the thread's asynchronous agent; the bytes move
// when the policy says: as late as allowed, at once, or at random.
#include <cstring>

#include "access.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "settings.h"
#include "shared_address.h"
#include "twin_parts.h"

namespace interpreter {

namespace {
void carry_out(const AsyncCopy& copy) {
    std::memcpy(copy.destination, copy.source, copy.bytes_read);
    std::memset(copy.destination + copy.bytes_read, 0, copy.bytes - copy.bytes_read);
}

void finish_oldest_group(Thread& thread) {
    for (const AsyncCopy& copy : thread.copy_groups.front()) carry_out(copy);
    thread.copy_groups.pop_front();
}

// The clock of the newest copy that is not in an unfinished group. Copies carried out early stay in their group, with
// nothing left to do, so that the count does not depend on the policy.
Clock newest_finished(const Thread& thread) {
    size_t pending = thread.open_copies.size();
    for (const auto& group : thread.copy_groups) pending += group.size();
    return thread.copies_issued - static_cast<Clock>(pending);
}
}  // namespace

void copy_async(uint32_t shared_destination, const void* global_source, uint32_t bytes, uint32_t bytes_read) {
    const Site site = RIGEL_CALLER;
    Thread& thread = *current;
    if (bytes_read > bytes) fail(site, text("cp.async of %u bytes reads %u", bytes, bytes_read));
    AsyncCopy copy{shared_pointer(shared_destination, site), static_cast<const uint8_t*>(global_source), bytes,
                   bytes_read};
    check_alignment(copy.destination, bytes, "cp.async destination", site);
    check_alignment(copy.source, bytes, "cp.async source", site);
    if (++thread.copies_issued > kLastClock)
        fail(site, "a thread has issued more copies than the race checker can count");
    if (bytes_read) check_global(copy.source, bytes_read, {&thread, Agent::AsyncCopy, Does::Read, site});
    check_shared(copy.destination, bytes, {&thread, Agent::AsyncCopy, Does::Write, site});
    const bool at_once =
        settings.async == AsyncPolicy::Eager || (settings.async == AsyncPolicy::Random && shuffle_source.below(2) == 0);
    if (at_once) {
        carry_out(copy);
        copy.bytes = copy.bytes_read = 0;
    }
    thread.open_copies.push_back(copy);
}

void copy_async_commit() {
    Thread& thread = *current;
    thread.copy_groups.push_back(std::move(thread.open_copies));
    thread.open_copies.clear();
}

void copy_async_wait(int pending) {
    Thread& thread = *current;
    while (thread.copy_groups.size() > static_cast<size_t>(pending)) finish_oldest_group(thread);
    thread.copies_seen = newest_finished(thread);
}

void copy_async_wait_all() {
    copy_async_commit();
    copy_async_wait(0);
}

void finish_copies(Thread& thread) {
    while (!thread.copy_groups.empty()) finish_oldest_group(thread);
    for (const AsyncCopy& copy : thread.open_copies) carry_out(copy);
    thread.open_copies.clear();
}

}  // namespace interpreter
