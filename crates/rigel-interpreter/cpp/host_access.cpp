#include "host_access.h"

#include <cstring>

#include "memory.h"
#include "scheduler.h"
#include "work.h"

namespace interpreter {

namespace {
// The one thread of the one block that stands for TMA.
struct CopyEngine {
    Block block;
    Warp warp;
    Thread thread;
};
CopyEngine& copy_engine() {
    static CopyEngine engine;
    return engine;
}

void check(const void* address, size_t bytes, Does does) {
    Thread& thread = copy_engine().thread;
    const size_t at = device_memory.offset(address);
    check_races(device_memory.cells, at, bytes, {&thread, Agent::Thread, does, 0}, thread.view->finished->floor,
                Memory::Global, at);
}
}  // namespace

HostWork::HostWork(const char* name, uint32_t stream, uint64_t sequence, const Ref<const FinishedWork>& known) {
    CopyEngine& engine = copy_engine();
    engine.warp.block = &engine.block;
    engine.thread.warp = &engine.warp;
    engine.thread.clock = 1;
    identity_ = history.begin_work(stream, sequence, name, {}, {});
    engine.block.first = history.begin_block(identity_, 0, 1);
    Ref<BlockClocks> clocks(new BlockClocks);
    clocks->of.assign(1, 0);
    Ref<View> view(new View);
    view->own_block = Ref<const BlockClocks>(clocks.get());
    view->finished = known;
    engine.thread.view = Ref<const View>(view.get());
    current = &engine.thread;
}

HostWork::~HostWork() { current = nullptr; }

void HostWork::write(void* address, size_t bytes) {
    check(address, bytes, Does::Write);
    std::memset(device_memory.written + device_memory.offset(address), 1, bytes);
}

void HostWork::read(const void* address, size_t bytes) { check(address, bytes, Does::Read); }

}  // namespace interpreter
