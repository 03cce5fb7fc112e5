// Copies and fills that the driver makes on behalf of the host, checked like accesses of a grid with one thread.
#pragma once
#include "races.h"

namespace interpreter {

// Work that a stream runs besides grids. Between its construction and its end, read and write check and remember the
// accesses. A failed check throws CheckFailed.
class HostWork {
  public:
    HostWork(const char* name, uint32_t stream, uint64_t sequence, const Ref<const FinishedWork>& known);
    ~HostWork();
    void write(void* address, size_t bytes);
    // Bytes that no one has written may be copied; they arrive as 0xff.
    void read(const void* address, size_t bytes);
    uint64_t identity() const { return identity_; }

  private:
    uint64_t identity_;
};

}  // namespace interpreter
