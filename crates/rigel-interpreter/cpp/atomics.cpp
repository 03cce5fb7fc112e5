// Atomics, flags and fences: the values, and what they order.
//
// A releasing store or update publishes what its thread knows at its address; an acquiring one takes it over. A relaxed
// store publishes what the thread knew at its last fence; what a relaxed load saw is taken over by the next fence. An
// update continues what earlier releases published; a plain store replaces it. Scope: device. A fence of the block
// alone orders nothing here, since within a block barriers do.
#include <cstring>
#include <unordered_map>

#include "access.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

namespace {

std::unordered_map<const void*, Ref<const Message>> published;

bool releases(Order order) { return order == Order::Release || order == Order::AcqRel; }
bool acquires(Order order) { return order == Order::Acquire || order == Order::AcqRel; }

void read_order(const void* address, Order order) {
    auto at = published.find(address);
    if (at == published.end()) return;
    if (acquires(order))
        acquire(*current, *at->second);
    else
        current->to_acquire = join(current->to_acquire, at->second);
}

void write_order(const void* address, Order order, bool continues) {
    Ref<const Message> message = releases(order) ? publish(*current) : current->released;
    Ref<const Message>& here = published[address];
    here = continues ? join(here, message) : message;
    if (!here) published.erase(address);
}

// Runs one update: `change` maps the old value to the new one.
template <class T, class Change>
T update(T* address, Order order, Site site, Change change) {
    check_global_or_shared(address, sizeof(T), {current, Agent::Thread, Does::AtomicUpdate, site});
    read_order(address, order);
    write_order(address, order, true);
    const T old = *address, changed = change(old);
    if (std::memcmp(&old, &changed, sizeof(T)) != 0) scheduler.note_progress();
    *address = changed;
    // Another thread may run between this update and the next instruction.
    scheduler.yield("its turn after an atomic update", site);
    return old;
}

}  // namespace

void forget_messages(const void* from, size_t bytes) {
    for (auto at = published.begin(); at != published.end();)
        at = at->first >= from && at->first < static_cast<const uint8_t*>(from) + bytes ? published.erase(at)
                                                                                        : std::next(at);
}

uint32_t load_u32(const uint32_t* address, Order order) {
    const Site site = RIGEL_CALLER;
    check_global_or_shared(address, 4, {current, Agent::Thread, Does::AtomicRead, site});
    const uint32_t value = *address;
    read_order(address, order);
    scheduler.yield("a flag to change (ld in a loop)", site);
    return value;
}

void store_u32(uint32_t* address, uint32_t value, Order order) {
    const Site site = RIGEL_CALLER;
    check_global_or_shared(address, 4, {current, Agent::Thread, Does::AtomicWrite, site});
    write_order(address, order, false);
    if (*address != value) scheduler.note_progress();
    *address = value;
}

void fence(Scope scope) {
    if (scope == Scope::Block) return;
    if (current->to_acquire) {
        acquire(*current, *current->to_acquire);
        current->to_acquire = {};
    }
    current->released = publish(*current);
}

uint32_t atomic_add(uint32_t* address, uint32_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint32_t old) { return old + value; });
}
float atomic_add(float* address, float value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](float old) { return old + value; });
}
uint32_t atomic_min(uint32_t* address, uint32_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint32_t old) { return old < value ? old : value; });
}
uint32_t atomic_max(uint32_t* address, uint32_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint32_t old) { return old > value ? old : value; });
}
uint64_t atomic_max(uint64_t* address, uint64_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint64_t old) { return old > value ? old : value; });
}
uint32_t atomic_exchange(uint32_t* address, uint32_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint32_t) { return value; });
}
uint32_t atomic_wrap(uint32_t* address, uint32_t last, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint32_t old) { return old >= last ? 0 : old + 1; });
}
uint32_t atomic_compare_exchange(uint32_t* address, uint32_t expected, uint32_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint32_t old) { return old == expected ? value : old; });
}
uint64_t atomic_compare_exchange(uint64_t* address, uint64_t expected, uint64_t value, Order order) {
    return update(address, order, RIGEL_CALLER, [=](uint64_t old) { return old == expected ? value : old; });
}

}  // namespace interpreter
